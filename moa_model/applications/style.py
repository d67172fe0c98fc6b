"""A style LoRA on the prior branch (app. E.1): the experts, whose projections have other names, stay as trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import UserError


@contextmanager
def styled(pipe: Any, lora: str | Path, strength: float = 1.0, **options: Any) -> Iterator[None]:
    """Draw with the LoRA of a folder, safetensors file or hub id within this block; afterwards all is as before.

    `options` go on to `load_lora_weights` (as ``revision``). Raises UserError if it cannot be read or does not fit.
    """
    try:
        pipe.load_lora_weights(str(lora), adapter_name="style", use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        pipe.unload_lora_weights()
        raise UserError(f'The LoRA "{lora}" cannot be loaded: {str(error).splitlines()[0]}') from error
    try:
        pipe.set_adapters("style", strength)
        yield
    finally:
        pipe.unload_lora_weights()
