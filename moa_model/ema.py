"""Exponential moving average of the trained parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moa_model.sharding import part_of


class EMA:
    """Averages the parameters of ``module``: average ← decay · average + (1 − decay) · parameter.

    The decay warms up as (1 + n) / (10 + n), so that a short training does not stay at its start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.average = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters of one more step in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.average.values()), list(self.module.parameters()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the module's parameters for a while (to evaluate or save)."""
        trained = {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}
        self._assign(self.average)
        try:
            yield
        finally:
            self._assign(trained)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages and count of updates."""
        return {**self.average, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state_dict()``."""
        for name, average in self.average.items():
            average.copy_(part_of(state[name], average))
        self.updates = int(state["updates"])

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.copy_(values[name])
