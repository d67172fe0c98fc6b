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
    pooled_dim: int = 0
    """Width of SDXL's pooled text; 0 for a base that takes a text alone."""

    @property
    def text_dim(self) -> int:
        """Width of the text states."""
        return int(self.unet["cross_attention_dim"])


# diffusers' defaults are Stable Diffusion 1's: 8 heads everywhere, widths 320, 640, 1280, 1280.
_SD1 = BaseShape({"sample_size": 64, "cross_attention_dim": 768}, latent_channels=4, pixels_per_latent=8, tokens=77)
_SDXL = BaseShape(
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),  # numbers of heads, each 64 wide
        "cross_attention_dim": 2048,  # 768 of CLIP ViT-L and 1280 of OpenCLIP ViT-bigG
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,  # six sizes of 256 and the pooled text
    },
    latent_channels=4,
    pixels_per_latent=8,
    tokens=77,
    pooled_dim=1280,
)
PUBLISHED_BASES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD1,
    "runwayml/stable-diffusion-v1-5": _SD1,
    "CompVis/stable-diffusion-v1-4": _SD1,
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
}
"""By hub id: what the published folders say."""
PUBLISHED_IMAGE_DIMS = {"openai/clip-vit-large-patch14": 768, "openai/clip-vit-base-patch32": 512}
"""By hub id: the width of a CLIP's projected embedding."""


def read_base(folder: Path) -> BaseShape:
    """The shape of the pipeline in a folder. Raises UserError where a configuration is missing or no such thing."""
    unet, vae = (_read(folder / part / "config.json") for part in ("unet", "vae"))
    text = _read(folder / "text_encoder" / "config.json")
    more = unet.get("addition_embed_type")
    if more not in (None, "text_time"):
        raise UserError(f"The base in {folder} wants {more} beside the text: MoA is for Stable Diffusion 1, 2 and XL.")
    try:
        return BaseShape(
            {"cross_attention_dim": 1280} | unet,  # diffusers' default
            int(vae["latent_channels"]),
            2 ** (len(vae["block_out_channels"]) - 1),  # every level of the VAE but the last halves the sides
            int(text["max_position_embeddings"]),
            int(_read(folder / "text_encoder_2" / "config.json")["projection_dim"]) if more else 0,
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
