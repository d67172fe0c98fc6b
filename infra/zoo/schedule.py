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
    """Yields step numbers until the minutes are spent and sets the learning rate by the share of them that is gone.

    Time stands still across `pause` (evaluation inside a training, say).
    """

    minutes: float
    peak: float
    warmup: float = 0.02
    spent: float = 0.0  # seconds used by an earlier, interrupted part of the same training

    def steps(self, optimizer: torch.optim.Optimizer, first: int = 0) -> Iterator[int]:
        """Step numbers, from `first`."""
        base, started, step = self.spent, time.monotonic(), first
        while True:
            self.spent = base + time.monotonic() - started
            share = self.spent / (60 * self.minutes)
            if share >= 1:
                return
            rate = self.peak * min(1.0, share / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_factor", 1.0)
            yield step
            step += 1


def averaged(model: torch.nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights, updated with `.update_parameters(model)`.

    The decay starts low, (1 + n) / (10 + n) after n updates: a short training must not end on an average of its beginnings.
    """

    def average(averages: ParamsTuple, currents: ParamsTuple, updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(list(averages), list(currents), 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=False)
