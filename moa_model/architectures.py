"""What the shapes of a training follow from: the base's and CLIP's configurations, without a weight of either."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError


@dataclass(frozen=True)
class BaseShape:
    """A Stable Diffusion pipeline, as far as a training step's shapes depend on it."""

    unet: Mapping[str, Any]
    """``UNet2DConditionModel``'s configuration; what it leaves out is diffusers' default."""
    latent_channels: int
    pixels_per_latent: int
    """Sides of a picture and of its latent: how many of its pixels stand behind one of the latent's."""
    tokens: int
    """The prompt's length, padding included."""

    @property
    def text_dim(self) -> int:
        """Width of the text states."""
        return int(self.unet["cross_attention_dim"])


# diffusers' defaults are Stable Diffusion 1's: 8 heads everywhere, widths 320, 640, 1280, 1280.
_SD1 = BaseShape({"sample_size": 64, "cross_attention_dim": 768}, latent_channels=4, pixels_per_latent=8, tokens=77)
PUBLISHED_BASES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD1,
    "runwayml/stable-diffusion-v1-5": _SD1,
    "CompVis/stable-diffusion-v1-4": _SD1,
}
"""By hub id: what the published folders say."""
PUBLISHED_IMAGE_DIMS = {"openai/clip-vit-large-patch14": 768, "openai/clip-vit-base-patch32": 512}
"""By hub id: the width of a CLIP's projected embedding."""


def read_base(folder: Path) -> BaseShape:
    """The shape of the pipeline in a folder. Raises UserError where a configuration is missing or no such thing."""
    unet, vae = (_read(folder / part / "config.json") for part in ("unet", "vae"))
    text = _read(folder / "text_encoder" / "config.json")
    try:
        return BaseShape(
            {"cross_attention_dim": 1280} | unet,  # diffusers' default
            int(vae["latent_channels"]),
            2 ** (len(vae["block_out_channels"]) - 1),  # every level of the VAE but the last halves the sides
            int(text["max_position_embeddings"]),
        )
    except KeyError as error:
        raise UserError(
            f"A configuration in {folder} does not say {error}: copy the whole model folder there."
        ) from error


def read_image_dim(folder: Path) -> int:
    """Width of the projected embedding of the CLIP in a folder. Raises UserError as ``read_base`` does."""
    try:
        return int(_read(folder / "config.json")["projection_dim"])
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} names no projection_dim: put a CLIP there.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy the whole model folder there.") from error
