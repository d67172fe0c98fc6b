"""Which Stable Diffusion a base is, as its model_index.json says: one text encoder (1, 2), or two (XL)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.model_files import resolve
from infra.settings import ModelReference

_FILE = "model_index.json"


@dataclass(frozen=True)
class ModelIndex:
    """What of a pipeline's index decides how its text is computed, and which pipeline draws with it."""

    two_encoders: bool
    """SDXL: states of two text encoders side by side, a pooled text, and the picture's size and crop."""
    empty_is_zero: bool
    """The unconditional half is zeros and not the states of the empty prompt (`force_zeros_for_empty_prompt`)."""


def read_model_index(base: ModelReference) -> ModelIndex:
    """The index of a base. A hub id's is fetched where the cache lacks it: some hundred bytes.

    Raises UserError where the index cannot be had or read, and for a base that is no Stable Diffusion 1, 2 or XL.
    """
    where, options = resolve(base, "base")
    try:
        index: Any = json.loads(_file(where, options).read_text("utf-8"))
        parts = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"The base's {_FILE} at {where} cannot be read ({_short(error)}): copy it anew.") from error
    if not {"unet", "vae", "text_encoder", "tokenizer"} <= parts:
        raise UserError(
            f"The base at {where} is a {index.get('_class_name', 'pipeline without a name')}: MoA is for pipelines of "
            "Stable Diffusion 1, 2 and XL, which have a U-Net, a VAE and a text encoder or two."
        )
    two = "text_encoder_2" in parts
    return ModelIndex(two, two and bool(index.get("force_zeros_for_empty_prompt", True)))  # as diffusers' default


def _file(where: str, options: dict[str, str]) -> Path:
    if not options:
        return Path(where) / _FILE
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(where, _FILE, revision=options["revision"]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        revision = options["revision"]
        raise UserError(
            f"The base {where} is not in the hub's cache and cannot be fetched: `hf download {where} --revision "
            f"{revision}` on a machine that reaches the hub."
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
