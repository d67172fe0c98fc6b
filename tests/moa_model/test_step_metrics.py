import json

import pytest
import torch
from torch import Tensor

from moa_model import Batch, MoAAdapter, MoATrainingModule
from moa_model.step_metrics import StepClock, StepMetrics, measure, mfu, peak_flops, peak_memory
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


def test_a_row_of_steps() -> None:
    watch = Watch()
    clock = StepClock(watch)
    with clock.waiting():
        watch.seconds += 1
    watch.seconds += 3
    clock.stepped(8)
    row = measure(20, {"total": 0.5}, 2.0, {LAYERS[0]: 0.3}, 1e-4, clock, CPU, 2, flops_per_image=1e9)
    assert (row.step, row.losses, row.gradient_norm, row.router_share) == (20, {"total": 0.5}, 2.0, {LAYERS[0]: 0.3})
    assert (row.images_per_second, row.data_wait, row.mfu) == (2.0, 0.25, None)  # a CPU's peak is not known
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
