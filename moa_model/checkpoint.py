"""A training's state on disk: adapter, average and optimizer, all safetensors, so that a restart is exact."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.config import MoAConfig
from moa_model.ema import EMA
from moa_model.files import CONFIG, WEIGHTS, config_text, read_tensors, read_weights

_AVERAGE, _OPTIMIZER, _STATE = "average.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Snapshot:
    """Copies in main memory of all that training needs to continue after ``step`` finished steps.

    The random numbers are not among it: they follow from seed and step.
    """

    step: int
    config: MoAConfig
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @classmethod
    def take(cls, adapter: MoAAdapter, ema: EMA, optimizer: torch.optim.Optimizer, step: int) -> "Snapshot":
        """Copy; the training may go on as soon as this returns."""
        weights, average = _copies(adapter.state_dict()), _copies(ema.state_dict())
        return cls(step, adapter.config, weights, average, _copies(_optimizer_tensors(adapter, optimizer)))

    def files(self, released: str | None = None) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each file, made one at a time. ``released``: a folder for the average as an adapter."""
        config = config_text(self.config).encode()
        yield WEIGHTS, save(self.weights)
        yield CONFIG, config
        yield _AVERAGE, save(self.average)
        yield _OPTIMIZER, save(self.optimizer)
        yield _STATE, (json.dumps({"step": self.step}) + "\n").encode()
        if released:
            averaged = {name: self.average.get(name, tensor) for name, tensor in self.weights.items()}
            yield f"{released}/{WEIGHTS}", save(averaged)
            yield f"{released}/{CONFIG}", config


def load_checkpoint(folder: str | Path, adapter: MoAAdapter, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Put the state back into objects made in the same way; gives the number of finished steps. Raises UserError."""
    folder = Path(folder)
    adapter.load_state_dict(read_weights(folder, adapter.state_dict()))
    tensors = read_tensors(folder / _OPTIMIZER)
    try:
        ema.load_state_dict(read_tensors(folder / _AVERAGE))
        step = int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["step"])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"The training state in {folder} is damaged ({error}): start from an earlier one.") from error
    steps_on_device = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")  # whose kernels count there
        for parameter in group["params"]
    }
    for name, parameter in adapter.named_parameters():
        prefix, counted_here = f"{name}|", id(parameter) in steps_on_device
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {
                key: value if key == "step" and not counted_here else value.to(parameter.device)
                for key, value in state.items()
            }
    return step


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In main memory, each with bytes of its own."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(adapter: MoAAdapter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, whatever the order of its groups."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in adapter.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
