"""A training's state on disk: adapter, average and optimizer, all safetensors, so that a restart is exact."""

import json
from pathlib import Path

import torch
from torch import Tensor

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.ema import EMA
from moa_model.files import read_tensors, read_weights, write_tensors, write_text

_AVERAGE, _OPTIMIZER, _STATE = "average.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(
    folder: str | Path, adapter: MoAAdapter, ema: EMA, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write everything that training needs to continue after ``step`` finished steps."""
    folder = Path(folder)
    adapter.save_pretrained(folder)
    write_tensors(folder / _AVERAGE, ema.state_dict())
    write_tensors(folder / _OPTIMIZER, _optimizer_tensors(adapter, optimizer))
    write_text(folder / _STATE, json.dumps({"step": step}) + "\n")


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


def _optimizer_tensors(adapter: MoAAdapter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, whatever the order of its groups."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in adapter.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
