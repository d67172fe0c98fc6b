"""An adapter's two files: ``adapter.safetensors`` and ``adapter_config.json``. Nothing is unpickled."""

import json
import os
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.errors import UserError
from moa_model.config import MoAConfig

WEIGHTS = "adapter.safetensors"
CONFIG = "adapter_config.json"


def write_adapter(folder: Path, config: MoAConfig, weights: dict[str, Tensor]) -> None:
    """Write both files into ``folder`` (made if absent), each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights)
    write_text(folder / CONFIG, config_text(config))


def config_text(config: MoAConfig) -> str:
    """What stands in ``adapter_config.json``."""
    return json.dumps(config.model_dump(), indent=1) + "\n"


def read_config(folder: Path) -> MoAConfig:
    """Read ``adapter_config.json``. Raises UserError if it is missing or not an adapter's."""
    path = folder / CONFIG
    try:
        return MoAConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"No adapter at {folder}: {CONFIG} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is not an adapter's configuration: {where}: {first['msg']}.") from error


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read ``adapter.safetensors`` and check names, shapes and values against ``expected``. Raises UserError."""
    path = folder / WEIGHTS
    weights = read_tensors(path)
    if strange := sorted(weights.keys() ^ expected.keys()):
        fault = "missing" if strange[0] in expected else "unknown"
        raise UserError(f"{path} does not belong to its {CONFIG}: {strange[0]} is {fault}.")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path} does not fit its {CONFIG}: {name} has shape {tuple(tensor.shape)}, "
                f"not {tuple(expected[name].shape)}."
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise UserError(
                f"{path} holds values that are not finite numbers in {name}: train or pull the adapter again."
            )
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises UserError if it is missing, truncated or no safetensors file."""
    try:
        return load_file(path, backend="pread")  # memory of its own, not the file mapped: it may be trained
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): pull or copy it again.") from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file beside its place, then move it there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place, then move it there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
