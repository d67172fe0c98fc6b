"""A training budget in minutes: warm up, then decay along a cosine, whatever the machine's speed."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

ParamsTuple = tuple[Tensor, ...] | list[Tensor]


@dataclass
class Schedule:
    """Yields step numbers until the minutes are spent and sets the learning rate by the share of them that is gone."""

    minutes: float
    peak: float
    warmup: float = 0.02
    spent: float = 0.0  # seconds, kept by `steps`

    def rate(self, spent: float) -> float:
        """The learning rate after `spent` seconds."""
        share = spent / (60 * self.minutes)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, share))
        return self.peak * min(1.0, share / self.warmup) * cosine

    def apply(self, optimizer: torch.optim.Optimizer, spent: float) -> None:
        """Set the rate of every group, times the group's own `rate_factor`."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(spent) * group.get("rate_factor", 1.0)

    def steps(self, optimizer: torch.optim.Optimizer) -> Iterator[int]:
        """Step numbers until the time is up."""
        started, step = time.monotonic(), 0
        while True:
            self.spent = time.monotonic() - started
            if self.spent >= 60 * self.minutes:
                return
            self.apply(optimizer, self.spent)
            yield step
            step += 1


def averaged(model: torch.nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights, updated with `.update_parameters(model)`.

    The decay starts low, (1 + n) / (10 + n) after n updates: a short training must not end on an average of its
    beginnings.
    """

    def average(averages: ParamsTuple, currents: ParamsTuple, updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(list(averages), list(currents), 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=False)
