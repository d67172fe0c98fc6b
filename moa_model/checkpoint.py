"""A training's state on disk: adapter, average and optimizer, all safetensors, so that a restart is exact."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, distributed

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.config import MoAConfig
from moa_model.ema import EMA
from moa_model.files import CONFIG, WEIGHTS, config_text, read_tensors, read_weights
from moa_model.sharding import Part, copied, gather, part_of

_AVERAGE, _OPTIMIZER, _STATE = "average.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Snapshot:
    """Copies in main memory of all that training needs to continue after ``step`` finished steps.

    The random numbers are not among it: they follow from seed and step. Of a sharded training each worker copies its
    parts, and worker 0 writes what ``gathered`` makes of them.
    """

    step: int
    config: MoAConfig
    weights: Mapping[str, Tensor | Part]
    average: Mapping[str, Tensor | Part]
    optimizer: Mapping[str, Tensor | Part]

    @classmethod
    def take(cls, adapter: MoAAdapter, ema: EMA, optimizer: torch.optim.Optimizer, step: int) -> "Snapshot":
        """Copy; the training may go on as soon as this returns."""
        weights, average = copied(adapter.state_dict()), copied(ema.state_dict())
        return cls(step, adapter.config, weights, average, copied(_optimizer_tensors(adapter, optimizer)))

    def gathered(self, group: distributed.ProcessGroup) -> "Snapshot":
        """With whole tensors on worker 0, and with none on the others; all call it. ``group``: as of ``gather``."""
        weights, average, optimizer = (gather(each, group) for each in (self.weights, self.average, self.optimizer))
        return replace(self, weights=weights, average=average, optimizer=optimizer)

    def files(self, released: str | None = None) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each file, made one at a time. ``released``: a folder for the average as an adapter."""
        config = config_text(self.config).encode()
        yield WEIGHTS, save(_whole(self.weights))
        yield CONFIG, config
        yield _AVERAGE, save(_whole(self.average))
        yield _OPTIMIZER, save(_whole(self.optimizer))
        yield _STATE, (json.dumps({"step": self.step}) + "\n").encode()
        if released:
            averaged = {name: self.average.get(name, tensor) for name, tensor in self.weights.items()}
            yield f"{released}/{WEIGHTS}", save(_whole(averaged))
            yield f"{released}/{CONFIG}", config


def load_checkpoint(folder: str | Path, adapter: MoAAdapter, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Put the state back into objects made in the same way; gives the number of finished steps. Raises UserError.

    They may be sharded where those that were saved were not, or the other way round, over any number of workers.
    """
    folder = Path(folder)
    weights = read_weights(folder, adapter.state_dict())
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.copy_(part_of(weights.pop(name), parameter))
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
                key: _state_at(parameter, key, value, counted_here) for key, value in state.items()
            }
    return step


def _state_at(parameter: Tensor, key: str, value: Tensor, counted_here: bool) -> Tensor:
    """Of the optimizer's state the part that belongs to the parameter; the count of steps is one number for all."""
    if key != "step":
        return part_of(value, parameter)
    return value.to(parameter.device) if counted_here else value


def _whole(tensors: Mapping[str, Tensor | Part]) -> dict[str, Tensor]:
    whole = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    assert len(whole) == len(tensors), "parts are gathered before they are written"
    return whole


def _optimizer_tensors(adapter: MoAAdapter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, whatever the order of its groups."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in adapter.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
