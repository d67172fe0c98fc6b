"""What each Ray Train worker runs from the last checkpoint on: the same steps and samples for any number of workers.

Step k reads a global batch that is a pure function of (seed, k, catalog); a worker takes its rows of it, and the
gradient is the mean over all rows however they are shared out.
"""

import json
import math
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
import torch.distributed as distributed
from torch import Tensor

from flows import training_resize
from flows.checkpoints import RELEASED, CheckpointWriter
from flows.machine_checkpoint import checkpoint_here
from flows.training_account import account
from flows.training_cluster import fewest_workers
from flows.training_flops import FlopsCount
from flows.training_job import HISTORY, TrainingJob
from flows.training_loader import batches
from flows.training_metrics import EventFiles
from flows.training_models import base_of, new_adapter
from flows.training_pictures import TrainingPictures
from flows.training_samples import StepBatch, StepBatches, TrainingSamples
from flows.watchdog import Watchdog
from infra.errors import UserError
from infra.shard_cache import ShardCache
from moa_model import EMA, Batch, Losses, MoATrainingModule, Snapshot, load_checkpoint, rate_scale
from moa_model.parallel import Replicas, Shards
from moa_model.sharding import Sharding
from moa_model.speed import begin_pass, clear_gradients, make_optimizer, prepare
from moa_model.step_metrics import StepClock, StepMetrics, device_name, measure, peak_flops
from preprocessing.precompute import Precomputer

_ROW_EVERY = 10  # steps that one row of the loss curve averages
_PROBED = 16  # batches: on the run's first ones the losses before and after training are compared
_PRECISION = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}  # of the weights
_FROZEN = {"fp32": None, "bf16": torch.bfloat16}  # to what the prior's are changed
_BAD_IN_A_ROW = 10  # steps that are skipped: more than that is no bad luck
_NOTICED_SECONDS = 5.0  # after which a preemption is noticed at the latest; Ray itself looks so often
_USUAL_STEPS = 100  # that the loss's running mean remembers, and before which no loss is a spike


def train_worker(config: dict[str, Any]) -> None:
    """The loop of one worker; `config` = {"job": TrainingJob, "reporter": actor that is told of progress}."""
    job: TrainingJob = config["job"]
    done = 0
    try:
        with Watchdog(job.settings.train.hang_seconds) as watchdog:
            worker = _Worker(job, config["reporter"], watchdog)
            done = worker.first
            for step in worker.run():
                done = step
    except torch.OutOfMemoryError as error:
        if done:
            raise  # it did fit: what else is on the GPU may be gone when Ray starts the workers again
        raise UserError(
            f"The training does not fit into a GPU's memory ({str(error).partition('. ')[0]}): take each worker's "
            "share of the batch in pieces, --set train.micro_batch_size=8, say; moa train --dry-run says what fits."
        ) from error
    finally:
        training_resize.saved()  # there is nothing more to wait for, however this ended


class _Worker:
    """One worker's model, data and place among the others."""

    def __init__(self, job: TrainingJob, reporter: Any, watchdog: Watchdog) -> None:
        import ray.train
        from ray.train.torch import get_device

        self.job, self.options, self.reporter, self.watchdog = job, job.settings.train, reporter, watchdog
        options, self.context = self.options, ray.train.get_context()
        self.rank, self.workers = self.context.get_world_rank(), self.context.get_world_size()
        self.device = get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        unet, scheduler, scaling, shift = base_of(job.settings)
        self.source = self._source(scaling, shift)
        image_dim = self.source.samples[0].image_embeds.shape[-1]
        self.adapter = new_adapter(job, unet, image_dim)
        self.module = MoATrainingModule(
            unet,
            self.adapter,
            scheduler,
            lambda_router=options.lambda_router,
            lambda_object=options.lambda_object,
            blocks=options.router_blocks,
            router_foreground=options.router_foreground,
            lambda_preservation=options.lambda_preservation,
        ).to(_PRECISION[options.precision])
        sharding = options.sharding if self.workers > 1 else "none"  # one worker has nobody to share with
        prepare(
            self.module,
            prior_sharded=sharding == "fsdp",
            channels_last=options.channels_last,
            compile=options.compile,
            activation_checkpointing=options.activation_checkpointing,
            frozen_dtype=_FROZEN[options.frozen_precision],
        )
        self.parallel = self._parallel(sharding)
        groups = self.module.optimizer_groups(options.learning_rate, options.router_learning_rate_factor)
        self.optimizer = make_optimizer(groups, fused=options.fused_optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = EMA(self.adapter, options.ema_decay)
        self.history: dict[str, Any] = {
            "curve": [], "before": None, "after": None, "skipped": [], "usual": {"loss": 0.0, "steps": 0},
            "starts": [], "tally": 0,
        }  # fmt: skip
        self.first = self._resume()
        self.parallel.begin(self.first)
        self._started()
        self.row, self.in_row, self.bad_in_a_row = self._zeros(2), 0, 0
        self.clock = StepClock()
        self.flops: FlopsCount | None = None
        if self.rank == 0 and peak_flops(device_name(self.device)):
            self.flops = FlopsCount(job.settings, reporter.say.remote)
        self.curves: EventFiles | None = None
        if self.rank == 0:
            curves = f"runs/{job.run_id}/tensorboard"
            self.curves = EventFiles(job.store, curves, self.first, tell=reporter.say.remote)
        self.leaving = frozenset[str]()  # machines that will be taken away
        self.ask_every = 1  # steps between two questions about that
        place = self.first, self.rank, self.workers
        self.pictures = TrainingPictures.open(job, self.module, *place, watchdog.alive, reporter.say.remote)

    def _parallel(self, sharding: Sharding) -> Replicas | Shards:
        """How the module lies on the workers' devices, from here on."""
        if sharding == "none":
            return Replicas(self.module, self.device, self.rank, self.workers)
        half = torch.bfloat16 if self.options.precision == "bf16" else None
        return Shards(self.module, self.device, self.rank, self.workers, sharding, half)

    def _source(self, scaling: float, shift: float) -> StepBatches:
        """Its share of every step, from files of this machine."""
        settings, options = self.job.settings, self.options
        cache = ShardCache(self.job.store, settings.workspace / "cache" / "shards", options.cache_mb * 10**6)
        # Ray chooses the GPU for this thread alone; batches are prepared in others, and in processes.
        models = Precomputer(settings.models.base, settings.models.clip, settings.shard, self.device)
        # By the code that made the samples' text, so that the two halves of the guidance agree.
        null = models.empty_text()
        complete = settings.shard.moments and settings.shard.text and settings.shard.image_embeds
        samples = TrainingSamples(cache, self.job.shards, options, None if complete else models, self.job.damaged)
        place: dict[str, Any] = {"rank": self.rank, "workers": self.workers, "dtype": _PRECISION[options.precision]}
        null_pooled = None if null.pooled is None else null.pooled[0]
        return StepBatches(samples, options, null.states[0], scaling, shift, **place, null_pooled=null_pooled)

    def _resume(self) -> int:
        """Take up the latest checkpoint; the number of steps that are done."""
        place = self.context.get_node_rank(), self.context.get_local_rank() == 0, self.workers
        # A folder of this machine's own, also where the machines share their workspace.
        below = self.job.settings.workspace / "cache" / "resume" / socket.gethostname()
        with checkpoint_here(self.job.store, self.job.run_id, below, *place) as (folder, step):
            if step:
                self.history = json.loads((folder / HISTORY).read_text("utf-8"))
                load_checkpoint(folder, self.adapter, self.ema, self.optimizer)
        return step

    def _started(self) -> None:
        """Write down that the workers go on from here: in what is saved with the weights, and by the driver."""
        hosts = [socket.gethostname()] * self.workers
        if self.workers > 1:
            distributed.all_gather_object(hosts, hosts[self.rank])
        begun = {"attempt": self.job.attempt, "step": self.first, "damaged": sorted(self.job.damaged)}
        self.history["starts"].append(begun)
        if self.rank == 0:
            self.reporter.started.remote(self.first, self.workers, hosts)

    def run(self) -> Iterator[int]:
        """All steps that are left: yields the number of those that are done after each."""
        options, writer = self.options, None
        if self.rank == 0:
            writer = CheckpointWriter(
                self.job.store, self.job.run_id, options.keep_last, options.keep_every, self.reporter.say.remote
            )
        if self.history["before"] is None:
            self.history["before"] = self._probe()
        if self.pictures is not None and self.pictures.missing(self.first):
            self._draw(self.pictures, self.first)
        coming = batches(self.source, range(self.first, options.steps), options, self.device.type == "cuda")
        self.clock.take()
        for step in range(self.first, options.steps):
            with self.clock.waiting():
                one = next(coming)
            self._step(step, one)
            self.clock.stepped(options.batch_size)
            self.watchdog.alive()
            done = step + 1
            keep = done % options.checkpoint_every == 0 or done == options.steps
            asking = done % self.ask_every == 0
            resizing = asking and self._to_be_resized()
            keep = keep or resizing or (asking and self._preempted())
            if done % _ROW_EVERY == 0 or keep:  # a checkpoint holds no half-summed row
                self._end_row(done)
            if done == options.steps:
                with self.ema.applied():
                    self.history["after"] = self._probe()
            if keep:
                self._save(writer, done)
            if resizing and writer is not None:
                writer.when_written(training_resize.saved)
            if self.pictures is not None and self.pictures.due(done):  # after the checkpoint: it may be in a hurry
                self._draw(self.pictures, done)
            yield done
        if self.pictures is not None:
            self.pictures.close()
        if self.curves is not None:
            self.curves.close()
        self.parallel.close()
        if self.workers > 1:
            distributed.barrier()  # nobody leaves before the last checkpoint is there

    def _step(self, step: int, one: StepBatch) -> None:
        """Gradient, and the optimizer's step unless something is wrong with it."""
        options = self.options
        scale = rate_scale(step, options.steps, options.warmup_steps, options.learning_rate_schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        clear_gradients(self.optimizer, options.compile)
        means = self._gradients(one.batch.to(self.device), one.tally)
        norm = self.parallel.clip(list(self.adapter.parameters()), options.clip_norm)
        values = torch.cat([means, norm.detach().to(means)[None]]).tolist()  # waits for the device, once
        fault = self._fault(values[0], values[-1])
        if fault:
            self._bad_step(step, fault, one.keys)
            return
        self.optimizer.step()
        self.ema.update()
        self.history["tally"] += round(values[-2] * options.batch_size)  # exact: whole numbers far below 2^53
        self.row += torch.tensor(values, dtype=torch.float64)
        self.in_row, self.bad_in_a_row = self.in_row + 1, 0
        usual = self.history["usual"]
        usual["steps"] += 1
        usual["loss"] += (values[0] - usual["loss"]) / min(usual["steps"], _USUAL_STEPS)

    def _zeros(self, more: int = 0) -> Tensor:
        """For sums over samples of the losses and of what the routers leave to the experts in each layer."""
        return torch.zeros(len(Losses._fields) + len(self.module.layer_names) + more, dtype=torch.float64)

    def _gradients(self, batch: Batch, tally: int) -> Tensor:
        """Add up the gradient of the global batch's mean loss; means of losses, router shares and tallies, on the
        device."""
        options, parallel = self.options, self.parallel
        sums = self._zeros(1).to(self.device)
        sums[-1] = tally
        for piece in parallel.pieces(batch, options.batch_size, options.micro_batch_size):
            with parallel.exchanging(piece.last):
                begin_pass(options.compile)
                with self._autocast():
                    losses = parallel.module(piece.batch)
                # Every sample should count the same, whatever is made of the workers' gradients.
                (losses.total * (piece.counted * parallel.divides_by / options.batch_size)).backward()
            sums[:-1] += self._said(losses) * piece.counted
        if self.workers > 1:
            distributed.all_reduce(sums)
        return sums / options.batch_size

    def _said(self, losses: Losses) -> Tensor:
        """Losses and router shares of the last forward pass."""
        shares_L = self.module.router_share_L
        assert shares_L is not None
        return torch.cat([torch.stack([loss.detach().double() for loss in losses]), shares_L.double()])

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def _fault(self, loss: float, gradient: float) -> str:
        """What is wrong with a step, "" where nothing is; the same on every worker."""
        if not math.isfinite(loss) or not math.isfinite(gradient):
            return f"loss {loss:g} and gradient norm {gradient:g} are not finite"
        usual, factor = self.history["usual"], self.options.spike_factor
        if factor and usual["steps"] >= _USUAL_STEPS and loss > factor * usual["loss"]:
            return f"loss {loss:g} is more than {factor:g} times the usual {usual['loss']:.4f}"
        return ""

    def _bad_step(self, step: int, fault: str, keys: tuple[str, ...]) -> None:
        """Write down that it was skipped, or stop; the samples of all workers are named."""
        named: list[Any] = [keys] * self.workers
        if self.workers > 1:
            distributed.all_gather_object(named, keys)
        samples = [key[:16] for one in named for key in one]
        self.bad_in_a_row += 1
        said = f"step {step + 1}: {fault}; its samples: {', '.join(samples)}"
        if self.options.bad_step == "stop":
            raise UserError(f"Training stopped at {said}; forget them, or skip such steps: --set train.bad_step=skip.")
        self.history["skipped"].append({"step": step + 1, "fault": fault, "samples": samples})
        if self.bad_in_a_row > _BAD_IN_A_ROW:
            raise UserError(f"Training stopped after {_BAD_IN_A_ROW} bad steps in a row: lower the rate. Last {said}.")
        if self.rank == 0:
            self.reporter.say.remote(f"skipped {said}")

    def _end_row(self, done: int) -> None:
        """A row of the loss curve: means over the steps since the row before, of all workers."""
        if self.in_row:
            *means, _, norm = (self.row / self.in_row).tolist()
            losses = dict(zip(Losses._fields, means, strict=False))
            shares = dict(zip(self.module.layer_names, means[len(losses) :], strict=True))
            share = sum(shares.values()) / len(shares)
            row = {"step": done, **_curve_row(losses), "gradient_norm": norm, "router_share": share}
            self.history["curve"].append(row)
            rate = self.optimizer.param_groups[0]["lr"]
            flops = None if self.flops is None else self.flops.result
            measured = measure(done, losses, norm, shares, rate, self.clock, self.device, self.workers, flops)
            measured = self._of_all(measured)
            if self.curves is not None:
                self.curves.add(measured.as_row())
                self.reporter.tell.remote(measured.as_row())
        self.row, self.in_row = self._zeros(2), 0

    def _of_all(self, measured: StepMetrics) -> StepMetrics:
        """With the longest wait and the largest memory of any worker. From the slowest follows how often all of them
        ask for preemptions, at the same steps."""
        seconds = self.options.batch_size / measured.images_per_second
        own = [seconds, measured.data_wait, measured.memory_bytes]
        most = torch.tensor(own, dtype=torch.float64, device=self.device)
        if self.workers > 1:
            distributed.all_reduce(most, distributed.ReduceOp.MAX)
        slowest, waited, memory = most.tolist()
        self.ask_every = min(_ROW_EVERY, max(1, int(_NOTICED_SECONDS / max(slowest, 1e-6))))
        return replace(measured, data_wait=waited, memory_bytes=int(memory))

    def _preempted(self) -> bool:
        """Whether a machine has just been told that it will be taken away; asked by all workers, told once."""
        import ray.train

        info = ray.train.get_preemption_info()
        known, self.leaving = self.leaving, frozenset(info.preempted_node_to_ranks if info is not None else ())
        return bool(self.leaving - known)

    def _to_be_resized(self) -> bool:
        """Whether the workers are about to be more or fewer; asked by all workers, rank 0 knows."""
        if fewest_workers(self.options) == self.options.workers:
            return False
        told = torch.tensor([float(training_resize.asked())], device=self.device)
        if self.workers > 1:
            distributed.broadcast(told, 0)
        return bool(told.item())

    def _draw(self, pictures: TrainingPictures, done: int) -> None:
        """A grid of pictures by the averaged weights; all workers draw."""
        with self.clock.paused(), self.ema.applied(), self._autocast():
            pictures.show(done, self.reporter.say.remote)

    def _probe(self) -> dict[str, float]:
        """Losses on the run's first batches: the same samples and noise before and after."""
        count = min(_PROBED, self.options.steps)
        sums = self._zeros().to(self.device)
        with self.clock.paused(), torch.no_grad(), self._autocast():
            for turn in range(count):
                batch = self.source[turn].batch.to(self.device)
                for piece in self.parallel.pieces(batch, self.options.batch_size, self.options.micro_batch_size):
                    begin_pass(self.options.compile)
                    sums += self._said(self.module(piece.batch)) * piece.counted
                self.watchdog.alive()
        if self.workers > 1:
            distributed.all_reduce(sums)
        means = (sums / (count * self.options.batch_size)).tolist()
        return _curve_row(dict(zip(Losses._fields, means, strict=False)))

    def _account(self) -> dict[str, Any]:
        """What became of every sample; takes seconds where millions were read."""
        samples, history = self.source.samples, self.history
        names, skipped = [row.shard for row in samples.rows], {one["step"] for one in history["skipped"]}
        steps, batch_size = self.options.steps, self.options.batch_size
        return account(samples.order, names, history["starts"], skipped, steps, batch_size, history["tally"])

    def _save(self, writer: CheckpointWriter | None, done: int) -> None:
        """Copy the state and let it be written while the training goes on. All workers call it; rank 0 has a writer."""
        if writer is not None:
            writer.wait()
        taken = self.parallel.snapshot(lambda: Snapshot.take(self.adapter, self.ema, self.optimizer, done))
        if writer is None or self.curves is None or taken is None:
            return
        self.curves.publish()  # a resumed run's curves have no gap
        last = done == self.options.steps
        history = json.dumps(self.history | ({"account": self._account()} if last else {})).encode()

        def files() -> Iterator[tuple[str, bytes]]:
            yield HISTORY, history
            yield from taken.result().files(RELEASED if last else None)

        loss = self.history["curve"][-1]["loss"] if self.history["curve"] else math.inf
        (writer.finish if last else writer.save)(done, files, loss)


def _curve_row(losses: dict[str, float]) -> dict[str, float]:
    """As the loss curve has them: the total under the name "loss"."""
    return {"loss": losses["total"], **{name: value for name, value in losses.items() if name != "total"}}
