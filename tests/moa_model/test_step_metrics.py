import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed

from moa_model import Batch, Losses, MoAAdapter, MoATrainingModule
from moa_model.step_metrics import StepClock, StepMetrics, StepSums, measure, mfu, peak_flops, peak_memory
from tests.moa_model.conftest import trained_like
from tests.tiny_models import IMAGE_DIM, tiny_pipeline

CPU = torch.device("cpu")
LAYERS = ("down_blocks.0.attn1", "up_blocks.3.attn2")


class Watch:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def _losses(value: float) -> Losses:
    return Losses(*(torch.tensor(value + place) for place in range(len(Losses._fields))))


@pytest.fixture(scope="module")
def module() -> MoATrainingModule:
    pipe = tiny_pipeline()
    adapter = trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM))
    return MoATrainingModule(pipe.unet, adapter, pipe.scheduler.config)


def test_shares_are_what_the_routers_said_in_every_layer(module: MoATrainingModule, batch: Batch) -> None:
    """Also in the blocks that no loss covers."""
    said: dict[int, Tensor] = {}
    hooks = [
        layer.router.register_forward_hook(
            lambda m, args, logits, index=index: said.update({index: 1 - logits.softmax(-1)[..., 0].mean()})
        )
        for index, layer in enumerate(module.adapter.layers)
    ]
    module(batch)
    for hook in hooks:
        hook.remove()
    shares = module.router_share_L
    assert shares is not None and not shares.requires_grad
    assert len(module.layer_names) == len(shares) == len(said) == 32 and len(module.blocks) == 11
    torch.testing.assert_close(shares, torch.stack([said[index] for index in range(32)]).detach())
    assert shares.std() > 0.01  # they differ, so the order is tested as well
    assert module.layer_names[0] == "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def test_a_row_of_a_real_step(module: MoATrainingModule, batch: Batch) -> None:
    sums, clock = StepSums(module.layer_names), StepClock()
    seen = []
    for _ in range(2):
        with clock.waiting():
            ready = batch
        losses = module(ready)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.adapter.parameters(), 1.0)
        module.zero_grad()
        sums.add(losses, norm, module.router_share_L)
        clock.stepped(4)
        seen.append((losses.masked.item(), norm.item()))
    row = measure(20, sums, clock, 1e-4, CPU, flops_per_image=1e9)
    assert (row.losses["masked"], row.gradient_norm) == pytest.approx(torch.tensor(seen).mean(dim=0).tolist())
    assert set(row.losses) == set(Losses._fields) and list(row.router_share) == list(module.layer_names)
    assert row.images_per_second > 0 and 0 <= row.data_wait < 1 and row.mfu is None  # a CPU's peak is not known
    assert row.memory_bytes > 1e8  # torch alone takes that
    assert json.loads(json.dumps(row.as_row())) == row.as_row()


def test_tags_are_grouped_and_flat() -> None:
    row = StepMetrics(7, {"total": 0.5, "masked": 0.25}, 2.0, 1e-4, {LAYERS[0]: 0.3}, 12.0, 0.4, 0.1, 1000)
    assert row.as_row() == {
        "step": 7, "loss/total": 0.5, "loss/masked": 0.25, "optimizer/gradient_norm": 2.0,
        "optimizer/learning_rate": 1e-4, "speed/images_per_second": 12.0, "speed/mfu": 0.4, "speed/data_wait": 0.1,
        "memory/peak_bytes": 1000.0, "router/down_blocks.0.attn1": 0.3,
    }  # fmt: skip
    assert "step" not in row.scalars()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_sums_give_means_and_start_anew(values: list[float]) -> None:
    sums = StepSums(LAYERS)
    for turn in range(2):
        for value in values:
            sums.add(_losses(value), torch.tensor(value + turn), torch.tensor([value, 0.5]))
        losses, norm, shares, waited = sums.take(waited=3.0)
        mean = sum(values) / len(values)
        assert list(losses.values()) == pytest.approx([mean + place for place in range(5)], abs=1e-3, rel=1e-4)
        assert norm == pytest.approx(mean + turn, abs=1e-3, rel=1e-4)
        assert shares == {LAYERS[0]: pytest.approx(mean, abs=1e-3, rel=1e-4), LAYERS[1]: 0.5} and waited == 3.0
    with pytest.raises(ValueError, match="no step"):
        sums.take()


def _worker(rank: int, meeting: str, answers: "multiprocessing.Queue[StepMetrics]") -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    watch, sums = Watch(), StepSums(LAYERS)
    clock = StepClock(watch)
    for _ in range(2):
        with clock.waiting():
            watch.seconds += 1.0 * rank  # the first never waits, the second half of its time
        watch.seconds += 2.0 - rank
        sums.add(_losses(10.0 * rank), torch.tensor(3.0), torch.tensor([0.2, 0.4 * rank]))
        clock.stepped(8)
    answers.put(measure(2, sums, clock, 1e-4, CPU))
    distributed.destroy_process_group()


def test_all_workers_have_the_mean_over_all(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, and no thread of this process is forked
    answers: multiprocessing.Queue[StepMetrics] = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path / "meeting"), answers)) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        rows = [answers.get(timeout=60) for _ in workers]
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()
    for row in rows:
        assert row.losses["total"] == 5.0 and row.gradient_norm == 3.0
        assert list(row.router_share.values()) == pytest.approx([0.2, 0.2])
        assert row.images_per_second == 4.0 and row.data_wait == 0.25


def test_the_clock_tells_waiting_from_work_and_leaves_pauses_out() -> None:
    watch = Watch()
    clock = StepClock(watch)
    for _ in range(3):
        with clock.waiting():
            watch.seconds += 1
        watch.seconds += 3
        clock.stepped(10)
    with clock.paused():
        watch.seconds += 50
    assert clock.waited == 3
    pace = clock.take()
    assert (pace.images, pace.seconds, pace.waited) == (30, 12, 3)
    with pytest.raises(StopIteration), clock.waiting():
        watch.seconds += 2
        next(iter(()))
    assert clock.take().waited == 2


def test_utilisation_is_of_all_devices_peaks() -> None:
    assert mfu(100.0, 1e12, "NVIDIA H100 80GB HBM3") == pytest.approx(1e14 / 989e12)
    assert mfu(400.0, 1e12, "NVIDIA H200", workers=4) == pytest.approx(1e14 / 989e12)
    assert mfu(100.0, None, "NVIDIA H200") is None and mfu(100.0, 1e12, "") is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Some other device", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_peak_memory_does_not_fall() -> None:
    before = peak_memory(CPU)
    held = torch.ones(30_000_000)
    larger = peak_memory(CPU)
    del held
    assert before <= larger == peak_memory(CPU)
