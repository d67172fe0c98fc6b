"""Subject morphing (§5.2): from one person to another along a line between their image features."""

from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.applications.swap import draw
from moa_model.binding import Portrait
from moa_model.scene import Scene


def morph(
    pipe: Any,
    adapter: MoAAdapter,
    prompt: str,
    word: str,
    first: Portrait,
    second: Portrait,
    frames: int,
    seed: int,
    scene: Scene | None = None,
    **call: Any,
) -> list[Image.Image]:
    """`frames` pictures of one prompt and seed, from `first` to `second`; the two ends are the plain pictures of each
    (`swap.draw`, which `scene` goes on to).

    Raises UserError for fewer than two frames.
    """
    if frames < 2:
        raise UserError(f"A morph has at least 2 frames, not {frames}.")
    a_F, b_F = feature(adapter, first), feature(adapter, second)
    shares = torch.linspace(0, 1, frames).tolist()
    return [draw(pipe, adapter, prompt, {word: torch.lerp(a_F, b_F, share)}, seed, scene, **call) for share in shares]


def feature(adapter: MoAAdapter, portrait: Portrait) -> Float[Tensor, " F"]:
    """The image feature of a portrait, by the adapter's encoder; one that is a feature already stays as it is."""
    if isinstance(portrait, Tensor):
        return portrait
    if adapter.image_encoder is None:
        raise UserError(
            "Pictures need an image encoder: adapter.attach(pipe, image_encoder=the CLIP folder or hub id)."
        )
    return adapter.image_encoder.encode([portrait])[0]
