"""The same training on one worker and on several, each with everything or with a part."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import distributed

from moa_model import EMA, MoAAdapter, MoATrainingModule, Snapshot, load_checkpoint, share
from moa_model.parallel import Replicas, Shards
from moa_model.sharding import Sharding
from moa_model.speed import make_optimizer, prepare
from tests.moa_model.conftest import make_batch, trained_like
from tests.tiny_models import IMAGE_DIM, TEXT_DIM
from tests.worker_processes import in_workers

BATCH = 7  # on 2 and 3 workers nobody has as much as the others
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Asked:
    """A training, as its settings ask for it."""

    sharding: Sharding = "fsdp"
    size: int = 0
    """Samples at once."""
    dtype: torch.dtype = torch.float64
    half: bool = False
    preservation: float = 1.0
    speed: tuple[str, ...] = ()


class Training:
    """What the training loop does with one worker's part of it."""

    def __init__(self, asked: Asked, rank: int = 0, workers: int = 1) -> None:
        self.asked, self.rank, self.workers = asked, rank, workers
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 12),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=TEXT_DIM,
            norm_num_groups=4,
        ).eval()
        self.adapter = trained_like(MoAAdapter.for_unet(unet, IMAGE_DIM))
        scheduler = DDPMScheduler(prediction_type="v_prediction")
        weights = {"lambda_object": 0.5, "lambda_preservation": asked.preservation}
        self.module = MoATrainingModule(unet, self.adapter, scheduler.config, blocks="all", **weights).to(asked.dtype)
        prepare(self.module, **dict.fromkeys(asked.speed, True), prior_sharded=asked.sharding == "fsdp")
        half = torch.bfloat16 if asked.half else None
        self.parallel: Replicas | Shards
        if asked.sharding == "none":
            self.parallel = Replicas(self.module, CPU, rank, workers)
        else:
            self.parallel = Shards(self.module, CPU, rank, workers, asked.sharding, half)
        self.optimizer = make_optimizer(self.module.optimizer_groups(1e-2), fused=True)
        self.ema = EMA(self.adapter, 0.9)
        self.first, self.curve = 0, list[list[float]]()

    def begin(self, folder: Path | None = None) -> "Training":
        if folder is not None:
            self.first = load_checkpoint(folder, self.adapter, self.ema, self.optimizer)
        self.parallel.begin(self.first)
        return self

    def run(self, until: int) -> "Training":
        """A row of the curve for each step: losses and the gradient's norm. With it the losses of the average."""
        for _ in range(self.first, until):
            self.optimizer.zero_grad(set_to_none=True)
            batch = make_batch(BATCH, self.asked.dtype)
            mine = share(BATCH, self.rank, self.workers)
            sums = torch.zeros(5, dtype=torch.float64)
            for piece in self.parallel.pieces(batch.rows(mine.start, mine.stop), BATCH, self.asked.size):
                with self.parallel.exchanging(piece.last):
                    with torch.autocast("cpu", torch.bfloat16, enabled=self.asked.half):
                        losses = self.parallel.module(piece.batch)
                    (losses.total * (piece.counted * self.parallel.divides_by / BATCH)).backward()
                sums += torch.stack([loss.detach().double() for loss in losses]) * piece.counted
            norm = self.parallel.clip(list(self.adapter.parameters()), 0.5)
            self.optimizer.step()
            self.ema.update()
            with self.ema.applied(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.asked.half):
                averaged = self.module(batch.rows(mine.start, mine.stop)).total.double() * (mine.stop - mine.start)
            sums = torch.cat([sums, averaged[None]])
            if self.workers > 1:
                distributed.all_reduce(sums)
            self.curve.append([*(sums / BATCH).tolist(), norm.item()])
        self.first = until
        return self

    def save(self, folder: Path) -> None:
        taken = self.parallel.snapshot(lambda: Snapshot.take(self.adapter, self.ema, self.optimizer, self.first))
        if taken is not None:
            for name, data in taken.result(timeout=60).files("released"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        self.parallel.close()


def digests(folder: Path) -> dict[str, str]:
    """Of each file of a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def train(rank: int, workers: int, asked: Sequence[Asked], steps: int) -> list[Any]:
    """The curves of several trainings, one after the other."""
    return [Training(one, rank, workers).begin().run(steps).curve for one in asked]


def alone(asked: Asked, steps: int) -> list[list[float]]:
    return train(0, 1, [asked], steps)[0]


def passed_on(rank: int, workers: int, sharding: Sharding, root: Path, start: str, name: str) -> list[Any]:
    """Twice the same: on from a checkpoint that others made, saved at once (`name`-0) and a step later (`name`-1)."""
    curves = []
    for turn in ("first", "second"):
        training = Training(Asked(sharding), rank, workers).begin(root / start)
        training.save(root / f"{name}-0-{turn}")
        training = Training(Asked(sharding), rank, workers).begin(root / start)
        curves.append(training.run(training.first + 1).curve)
        training.save(root / f"{name}-1-{turn}")
    return curves


CASES = [
    Asked(),
    Asked(size=2),
    Asked(size=1, speed=("activation_checkpointing", "channels_last"), preservation=0.0),
    Asked("fsdp-trained", size=2, speed=("channels_last",)),
    Asked("none", size=2),
]


@pytest.fixture(scope="module")
def single() -> list[list[list[float]]]:
    return [alone(Asked("none", preservation=one.preservation), 3) for one in CASES]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [2, 3])
def test_parts_learn_what_the_whole_learns(workers: int, single: list[list[list[float]]]) -> None:
    """Uneven shares, uneven numbers of pieces, recomputation, other layouts: losses, norm and average agree."""
    found = in_workers(workers, train, CASES, 3)
    assert all(one == found[0] for one in found), "all workers see the same numbers"
    for case, curve, expected in zip(CASES, found[0], single, strict=True):
        assert len(curve) == 3 and curve[0] != curve[2]
        for row, one in zip(curve, expected, strict=True):
            assert row == pytest.approx(one, rel=1e-9), case


@pytest.mark.timeout(600)
def test_half_precision_is_autocasts() -> None:
    """Weights gathered in half precision are what autocast makes of them: the same forward pass to the last digits.

    Backwards, FSDP's hooks add the gradients of what is used three times (skip connections) in another order.
    """
    shardings: list[Sharding] = ["none", "fsdp-trained", "fsdp"]
    asked = [Asked(one, dtype=torch.float32, half=True) for one in shardings]
    whole, *others = in_workers(2, train, asked, 3)[0]
    losses = slice(0, 5)
    for parts in others:
        assert parts[0][losses] == pytest.approx(whole[0][losses], rel=1e-6)
        assert parts[0][-1] == pytest.approx(whole[0][-1], rel=5e-3)  # the gradient's norm: eight bits are 4e-3
        for row, expected in zip(parts, whole, strict=True):
            assert row[0] == pytest.approx(expected[0], rel=2e-2)
    single = alone(Asked("none", dtype=torch.float32), 1)
    assert whole[0][losses] != pytest.approx(single[0][losses], rel=1e-5), "it is half precision"


@pytest.mark.timeout(900)
def test_a_checkpoint_goes_on_anywhere(tmp_path: Path) -> None:
    """One with everything → three with parts → two with parts of what is trained → one: the same files, bit for bit."""
    first = Training(Asked("none")).begin().run(2)
    first.save(tmp_path / "0")
    three = in_workers(3, passed_on, "fsdp", tmp_path, "0", "3")
    two = in_workers(2, passed_on, "fsdp-trained", tmp_path, "3-1-first", "2")
    assert three[0][0] == three[0][1] and two[0][0] == two[0][1], "the same workers, the same bits"
    for start, name in (("0", "3"), ("3-1-first", "2")):
        for turn in ("first", "second"):
            assert digests(tmp_path / f"{name}-0-{turn}") == digests(tmp_path / start)
        after = [digests(tmp_path / f"{name}-1-{turn}") for turn in ("first", "second")]
        assert after[0] == after[1] and after[0].keys() == digests(tmp_path / "0").keys()
        assert after[0]["adapter.safetensors"] != digests(tmp_path / start)["adapter.safetensors"]
    last = Training(Asked("none")).begin(tmp_path / "2-1-first")
    assert last.first == 4
    last.save(tmp_path / "1")
    assert digests(tmp_path / "1") == digests(tmp_path / "2-1-first")
    straight = first.run(4).curve
    assert [three[0][0][0], two[0][0][0]] == [pytest.approx(row, rel=1e-9) for row in straight[2:]]


def _disagree(rank: int, workers: int) -> str:
    training = Training(Asked(), rank, workers)
    try:
        training.parallel.begin(100 + rank)
    except RuntimeError as error:
        return str(error)
    return ""


def _slow_to_gather(rank: int, workers: int, folder: Path) -> None:
    """A step is done by all before worker 0 fetches anything; what it then fetches is from before the step."""
    training, stepped = Training(Asked(), rank, workers).begin(), threading.Event()
    if rank == 0:
        training.parallel._thread.submit(stepped.wait)
    taken = training.parallel.snapshot(lambda: Snapshot.take(training.adapter, training.ema, training.optimizer, 0))
    training.run(1)
    assert (taken is None) == (rank > 0) and not (taken and taken.done())
    stepped.set()
    training.parallel.close()
    if taken is not None:
        (folder / "before").write_bytes(dict(taken.result().files())["adapter.safetensors"])


@pytest.mark.timeout(300)
def test_workers_that_took_up_different_checkpoints_do_not_begin() -> None:
    said = in_workers(2, _disagree)
    assert said == ["the workers took up different checkpoints, of the steps 100 to 101"] * 2


@pytest.mark.timeout(300)
def test_steps_go_on_while_a_checkpoint_is_gathered(tmp_path: Path) -> None:
    in_workers(2, _slow_to_gather, tmp_path)
    Training(Asked("none")).begin().save(tmp_path)
    assert (tmp_path / "before").read_bytes() == (tmp_path / "adapter.safetensors").read_bytes()


def test_every_worker_has_as_many_pieces() -> None:
    """Rows of each worker's share, once each, and company for the others where it has fewer."""
    for workers, size in ((2, 0), (3, 1), (3, 2), (4, 1), (7, 1)):
        counts = set()
        for rank in range(workers):
            mine = share(BATCH, rank, workers)
            batch = make_batch(BATCH).rows(mine.start, mine.stop)
            shards = Shards.__new__(Shards)
            shards._workers = workers
            pieces = list(shards.pieces(batch, BATCH, size))
            assert torch.cat([one.batch.latents for one in pieces if one.counted]).equal(batch.latents)
            assert all(one.counted in (0, len(one.batch)) and len(one.batch) for one in pieces)
            assert [one.last for one in pieces] == [False] * (len(pieces) - 1) + [True]
            counts.add(len(pieces))
        assert len(counts) == 1
