"""What a training says of itself: one row of numbers per so many steps, for a single wait for the device.

Axes: L attention layers in the order in which they run.
"""

import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from moa_model.losses import Losses

# Dense bf16 multiply-adds of tensor cores, in FLOP/s, as the makers' data sheets have them (half of what they print
# "with sparsity"); the first name that fits counts. A slice of a device (MIG) has no entry, for it has no such peak.
_PEAK_FLOPS = (
    (r"\bMIG\b", None),
    (r"H100 PCIe", 756e12),
    (r"H100 NVL", 835e12),
    (r"H100|H200|GH200", 989e12),
    (r"A100", 312e12),
    (r"L40S", 362e12),
)


@dataclass(frozen=True)
class StepMetrics:
    """One row: means over the steps since the row before, over all workers."""

    step: int
    """Steps done, from the first one of the training on."""
    losses: Mapping[str, float]
    """By the names of ``Losses``."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    router_share: Mapping[str, float]
    """Mean of R_1 = 1 − R_0, the personalization expert's weight, over pixels and batch, by attention layer."""
    images_per_second: float
    """Of all workers together."""
    mfu: float | None
    """Model FLOP/s over what the devices could do at most; None where that or the model's cost is unknown."""
    data_wait: float
    """Share of the time in which the host waited for its data, 0 … 1. A GPU that still has work queued does not stand
    still meanwhile, so this is the most that data can have cost."""
    memory_bytes: int
    """The largest that this process had so far: of the GPU's memory (allocated tensors), else of the machine's."""

    def scalars(self) -> dict[str, float]:
        """Everything but the step, by tags as TensorBoard groups them: ``loss/masked``, ``router/down_blocks.0…``."""
        return {
            **{f"loss/{name}": value for name, value in self.losses.items()},
            "optimizer/gradient_norm": self.gradient_norm,
            "optimizer/learning_rate": self.learning_rate,
            "speed/images_per_second": self.images_per_second,
            **({} if self.mfu is None else {"speed/mfu": self.mfu}),
            "speed/data_wait": self.data_wait,
            "memory/peak_bytes": float(self.memory_bytes),
            **{f"router/{layer}": share for layer, share in self.router_share.items()},
        }

    def as_row(self) -> dict[str, float]:
        """The scalars and the step: plain numbers, which travel and are written as JSON."""
        return {"step": self.step, **self.scalars()}


@dataclass(frozen=True)
class Pace:
    """What a clock measured since it was last asked."""

    images: int
    seconds: float
    waited: float
    """Of the seconds, those spent waiting for data."""


class StepClock:
    """A training loop's stopwatch: waiting for data, the rest of the step, and what is neither."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._started, self._images, self._waited = now(), 0, 0.0

    @property
    def waited(self) -> float:
        """Seconds spent waiting for data since ``take`` was last called."""
        return self._waited

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches the next batch."""
        before = self._now()
        try:
            yield
        finally:
            self._waited += self._now() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training step, such as a checkpoint: the time does not count."""
        before = self._now()
        try:
            yield
        finally:
            self._started += self._now() - before

    def stepped(self, images: int) -> None:
        """A step of so many images, of all workers together, has ended."""
        self._images += images

    def take(self) -> Pace:
        """What was measured since the last call; measuring starts anew."""
        now = self._now()
        pace = Pace(self._images, now - self._started, self._waited)
        self._started, self._images, self._waited = now, 0, 0.0
        return pace


class StepSums:
    """Sums of what a row holds the means of, kept on the device: adding to them waits for nothing."""

    def __init__(self, layers: Sequence[str]) -> None:
        """``layers``: names of the attention layers whose shares will be given (``MoATrainingModule.layer_names``)."""
        self._layers = tuple(layers)
        self._sums: Tensor | None = None
        self.steps = 0

    def add(self, losses: Losses, gradient_norm: Float[Tensor, ""], router_share_L: Float[Tensor, " L"]) -> None:
        """One step of this worker. ``gradient_norm``: what ``clip_grad_norm_`` returned."""
        scalars = torch.stack([scalar.detach().float() for scalar in (*losses, gradient_norm)])
        step = torch.cat([scalars, router_share_L.detach().float()])
        self._sums = step if self._sums is None else self._sums + step
        self.steps += 1

    def take(self, waited: float = 0.0) -> tuple[dict[str, float], float, dict[str, float], float]:
        """Mean losses, gradient norm and router shares per step, and mean ``waited``; the sums start anew.

        Where torch.distributed is initialised the means are over all workers, and every worker must take part, after as
        many steps. Raises ValueError where no step was added.
        """
        if self._sums is None:
            raise ValueError("no step was added since the last row")
        sums = torch.cat([self._sums, self._sums.new_tensor([waited])])
        workers = _workers()
        if workers > 1:
            distributed.all_reduce(sums)
        means, count = (sums[:-1] / (self.steps * workers)).tolist(), len(Losses._fields)
        losses = dict(zip(Losses._fields, means[:count], strict=True))
        shares = dict(zip(self._layers, means[count + 1 :], strict=True))
        self._sums, self.steps = None, 0
        return losses, means[count], shares, float(sums[-1]) / workers


def measure(
    step: int,
    sums: StepSums,
    clock: StepClock,
    learning_rate: float,
    device: torch.device,
    flops_per_image: float | None = None,
) -> StepMetrics:
    """The row of what was added since the last one, ``step`` steps being done. Every worker must take part.

    ``flops_per_image``: of forward and backward pass, two to a multiply-accumulate; None = unknown, and so is the MFU.
    """
    losses, norm, shares, waited = sums.take(clock.waited)
    pace = clock.take()  # after the sums: they have waited for the device to finish what it was given
    per_second = pace.images / pace.seconds if pace.seconds else 0.0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return StepMetrics(
        step,
        losses,
        norm,
        learning_rate,
        shares,
        per_second,
        mfu(per_second, flops_per_image, name, _workers()),
        min(1.0, waited / pace.seconds) if pace.seconds else 0.0,
        peak_memory(device),
    )


def mfu(images_per_second: float, flops_per_image: float | None, device_name: str, workers: int = 1) -> float | None:
    """Model FLOPs utilisation (arXiv 2204.02311, app. B) of all workers' devices together; None where unknown."""
    peak = peak_flops(device_name)
    if peak is None or flops_per_image is None:
        return None
    return images_per_second * flops_per_image / (peak * workers)


def peak_flops(device_name: str) -> float | None:
    """Most dense bf16 FLOP/s of a GPU of this name (``torch.cuda.get_device_name``); None for one not known here."""
    return next((peak for pattern, peak in _PEAK_FLOPS if re.search(pattern, device_name)), None)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on the GPU, or elsewhere the most that this process had resident (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _workers() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
