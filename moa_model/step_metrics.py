"""What a training says of itself: one row of numbers per so many steps."""

import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

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
    """Share of the time in which a process waited for its data, 0 … 1. A GPU that still has work queued does not
    stand still meanwhile, so this is the most that data can have cost. ``measure`` knows this process; where there are
    several, the longest wait counts, for the others wait for that one."""
    memory_bytes: int
    """The largest that a process had so far: of the GPU's memory (allocated tensors), else of the machine's. As of
    ``data_wait``: of several the largest."""

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


def measure(
    step: int,
    losses: Mapping[str, float],
    gradient_norm: float,
    router_share: Mapping[str, float],
    learning_rate: float,
    clock: StepClock,
    device: torch.device,
    workers: int = 1,
    flops_per_image: float | None = None,
) -> StepMetrics:
    """The row of the steps since the last one, ``step`` steps being done; losses, norm and shares are means over them.

    ``flops_per_image``: of forward and backward pass, two to a multiply-accumulate; None = unknown, and so is the MFU.
    """
    pace = clock.take()
    per_second = pace.images / pace.seconds if pace.seconds else 0.0
    return StepMetrics(
        step,
        losses,
        gradient_norm,
        learning_rate,
        router_share,
        per_second,
        mfu(per_second, flops_per_image, device_name(device), workers),
        min(1.0, pace.waited / pace.seconds) if pace.seconds else 0.0,
        peak_memory(device),
    )


def mfu(images_per_second: float, flops_per_image: float | None, device_name: str, workers: int = 1) -> float | None:
    """Model FLOPs utilisation (arXiv 2204.02311, app. B) of all workers' devices together; None where unknown."""
    peak = peak_flops(device_name)
    if peak is None or flops_per_image is None:
        return None
    return images_per_second * flops_per_image / (peak * workers)


def device_name(device: torch.device) -> str:
    """A GPU's, as its driver says it; "" for any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def peak_flops(device_name: str) -> float | None:
    """Most dense bf16 FLOP/s of a GPU of this name (``torch.cuda.get_device_name``); None for one not known here."""
    return next((peak for pattern, peak in _PEAK_FLOPS if re.search(pattern, device_name)), None)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on the GPU, or elsewhere the most that this process had resident (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
