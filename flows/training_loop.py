"""What each Ray Train worker runs from the last checkpoint on: the same steps and samples for any number of workers.

Step k reads a global batch that is a pure function of (seed, k, catalog); a worker takes its rows of it.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from torch import Tensor, nn

from flows.training_job import HISTORY, RELEASED, TrainingJob, fetch_checkpoint, list_files
from flows.training_samples import TrainingSamples
from infra.model_files import resolve
from infra.settings import Settings
from moa_model import (
    EMA,
    Batch,
    Losses,
    MoAAdapter,
    MoATrainingModule,
    draw,
    global_batch,
    load_checkpoint,
    rate_scale,
    save_checkpoint,
)
from preprocessing.precompute import Precomputer

_ROW_EVERY = 10  # steps that one row of the loss curve averages
_PROBED = 16  # of the batches, spread over the run: on them the losses before and after training are compared


def train_worker(config: dict[str, Any]) -> None:
    """The loop of one worker; `config` = {"job": TrainingJob, "reporter": actor that is told of progress}."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    job: TrainingJob = config["job"]
    options = job.settings.train
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    rows = options.batch_size // workers
    precomputer = Precomputer(job.settings.models.base, job.settings.models.clip, job.settings.shard)
    samples = TrainingSamples(job.store, job.shards, precomputer.text)
    # By the code that made the samples' text, so that the two halves of the guidance agree.
    null_text = torch.from_numpy(precomputer.text([""])[0]).float()
    del precomputer  # and with it the text encoder
    unet, scheduler, scaling, shift = _base(job.settings)
    adapter = _adapter(job, unet, samples.image_dim)
    module = MoATrainingModule(
        unet,
        adapter,
        scheduler,
        lambda_router=options.lambda_router,
        lambda_object=options.lambda_object,
        blocks=options.router_blocks,
        router_foreground=options.router_foreground,
        lambda_preservation=options.lambda_preservation,
    ).to(device)
    optimizer = torch.optim.AdamW(
        module.optimizer_groups(options.learning_rate, options.router_learning_rate_factor), weight_decay=0.01
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    ema = EMA(adapter, options.ema_decay)
    history: dict[str, Any] = {"curve": [], "before": None, "after": None}
    first = 0
    with tempfile.TemporaryDirectory(prefix="moa-resume-") as folder:
        if fetch_checkpoint(job.store, job.run_id, Path(folder)):
            first = load_checkpoint(folder, adapter, ema, optimizer)
            history = json.loads(Path(folder, HISTORY).read_text("utf-8"))

    def batch_of(step: int) -> Batch:
        """This worker's rows of global step `step`."""
        indices = global_batch(options.seed, step, options.batch_size, len(samples))
        numbers = draw(
            options.seed,
            step,
            options.batch_size,
            samples.latent_shape,
            options.max_timestep,
            options.condition_dropout,
            options.timestep_exponent,
        )
        mine = slice(rank * rows, (rank + 1) * rows)
        return samples.batch(indices[mine], numbers.rows(mine.start, mine.stop), null_text, scaling, shift).to(device)

    def probe() -> dict[str, float]:
        """Losses on some of the run's own batches: the same samples and noise before and after."""
        count = min(_PROBED, options.steps)
        batches = (batch_of(turn * options.steps // count) for turn in range(count))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            return _mean_losses(sum(map(_stacked, map(module, batches))), count, workers)

    if history["before"] is None:
        history["before"] = probe()
    parallel: nn.Module = prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})

    sums, since = _no_losses(), 0
    for step in range(first, options.steps):
        batch, done = batch_of(step), step + 1
        scale = rate_scale(step, options.steps, options.warmup_steps, options.learning_rate_schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            losses = parallel(batch)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        ema.update()
        sums, since = sums + _stacked(losses), since + 1
        keep = done % options.checkpoint_every == 0 or done == options.steps
        if done % _ROW_EVERY == 0 or keep:  # a checkpoint holds no half-summed row
            history["curve"].append({"step": done, **_mean_losses(sums, since, workers)})
            sums, since = _no_losses(), 0
            if rank == 0:
                config["reporter"].tell.remote(done, history["curve"][-1]["loss"])
        if done == options.steps:
            with ema.applied():
                history["after"] = probe()
        if keep:
            _checkpoint(rank, adapter, ema, optimizer, done, history)


def _checkpoint(
    rank: int,
    adapter: MoAAdapter,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    step: int,
    history: dict[str, Any],
) -> None:
    """Rank 0 saves, all report: reporting is a barrier. The last one also holds what is released: the average."""
    import ray.train

    if rank != 0:
        ray.train.report({"step": step}, checkpoint_dir_name=f"step-{step:08d}")
        return
    with tempfile.TemporaryDirectory(prefix="moa-checkpoint-") as folder:
        save_checkpoint(folder, adapter, ema, optimizer, step)
        Path(folder, HISTORY).write_text(json.dumps(history), "utf-8")
        if history["after"] is not None:
            with ema.applied():
                adapter.save_pretrained(Path(folder, RELEASED))
        list_files(Path(folder))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:08d}")


def _no_losses() -> Tensor:
    return torch.zeros(len(Losses._fields))


def _stacked(losses: Losses) -> Tensor:
    return torch.stack([loss.detach().float().cpu() for loss in losses])


def _mean_losses(sums: Tensor, steps: int, workers: int) -> dict[str, float]:
    """Mean losses over some steps and all workers; every worker takes part."""
    import torch.distributed as distributed

    if workers > 1:
        distributed.all_reduce(sums)
    named = dict(zip(Losses._fields, (sums / (steps * workers)).tolist(), strict=True))
    return {"loss": named.pop("total"), **named}


def _base(settings: Settings) -> tuple[nn.Module, Any, float, float]:
    """The base's U-Net, scheduler configuration, latent scale and shift."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    where, options = resolve(settings.models.base, "base")
    safe: dict[str, Any] = {**options, "use_safetensors": True}
    unet = UNet2DConditionModel.from_pretrained(where, subfolder="unet", **safe)
    scheduler = DDPMScheduler.load_config(where, subfolder="scheduler", **options)
    vae = AutoencoderKL.load_config(where, subfolder="vae", **options)
    return unet, scheduler, float(vae.get("scaling_factor", 0.18215)), float(vae.get("shift_factor") or 0.0)


def _adapter(job: TrainingJob, unet: nn.Module, image_dim: int) -> MoAAdapter:
    own = {
        "prior_only_above": job.settings.evaluate.prior_only_above,
        "image_encoder": job.settings.models.clip.location,
    }
    if job.start is None:
        torch.manual_seed(job.settings.train.seed)
        return MoAAdapter.for_unet(unet, image_dim, **own)
    with tempfile.TemporaryDirectory(prefix="moa-start-") as folder:
        for name, data in job.start.items():
            Path(folder, name).write_bytes(data)
        adapter = MoAAdapter.from_pretrained(folder)
    # What is no weight is this run's, not that of the release it starts from.
    adapter.config = adapter.config.model_copy(update=own)
    return adapter
