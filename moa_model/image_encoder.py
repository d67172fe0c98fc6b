"""Pictures of subjects to image features: CLIP's vision tower with its projection."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, CLIPImageProcessor, CLIPVisionModelWithProjection
from transformers.utils import logging

from infra.errors import UserError

_GREY = (127, 127, 127)  # what a removed background looks like in training


class ImageEncoder:
    """A ``CLIPVisionModelWithProjection`` and its image processor; the feature is ``image_embeds``, not normalised."""

    def __init__(self, model: Any, processor: Any, name: str = "") -> None:
        self.model, self.processor, self.name = model, processor, name

    @property
    def width(self) -> int:
        """Width of the image feature."""
        return self.model.config.projection_dim

    @classmethod
    def load(cls, location: str, **kwargs: Any) -> Self:
        """Load from a folder or a hub id (``kwargs`` such as ``revision``); safetensors only. Raises UserError."""
        try:
            config = AutoConfig.from_pretrained(location, **kwargs)
            if config.model_type == "clip":  # a whole CLIP: its projection_dim stands beside its vision tower's
                config.vision_config.projection_dim = config.projection_dim
                config = config.vision_config
            with _quiet():
                model = CLIPVisionModelWithProjection.from_pretrained(
                    location, config=config, use_safetensors=True, **kwargs
                )
            processor = CLIPImageProcessor.from_pretrained(location, **kwargs)
        except (OSError, ValueError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"No CLIP image encoder at {location}: {reason}") from error
        return cls(model.eval().requires_grad_(False), processor, str(location))

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures F"]:
        """Image features in float32 on the CPU. Transparent pixels become grey."""
        pixels = self.processor(images=[_opaque(picture) for picture in pictures], return_tensors="pt")["pixel_values"]
        parameter = next(self.model.parameters())
        embeds = self.model(pixel_values=pixels.to(parameter.device, parameter.dtype)).image_embeds
        return embeds.float().cpu().clone()


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # PIL would cut off what is brighter than 255
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*_GREY, 255)), rgba).convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """A whole CLIP's text tower is rightly not loaded: no table about it."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
