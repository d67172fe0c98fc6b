"""Is there anything in a picture that should not be published? Stable Diffusion's own safety checker, if one is named.

It compares CLIP's embedding of the picture with those of 17 concepts, each with a threshold, and with three that make
it stricter (Rando et al., arXiv 2210.04610, describe it). No drawn picture is changed: the gate counts what is flagged.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from PIL import Image

from infra.errors import UserError
from infra.model_files import resolve, weights_needed
from infra.settings import OptionalModelReference


class SafetyChecker(Protocol):
    """Pictures in; for each whether it is flagged."""

    def flagged(self, pictures: Sequence[Image.Image]) -> list[bool]: ...


def open_safety_checker(reference: OptionalModelReference, device: str = "cpu") -> SafetyChecker | None:
    """The checker that `models.safety` names; None where it names none, and whoever asks must say so."""
    if not reference.location:
        return None
    if reference.backend != "transformers":
        raise UserError(f"models.safety.backend is '{reference.backend}', but the safety checker's is 'transformers'.")
    return DiffusersSafetyChecker(reference, device)


class DiffusersSafetyChecker:
    """diffusers' `StableDiffusionSafetyChecker` and the image processor in its folder."""

    def __init__(self, reference: OptionalModelReference, device: str = "cpu") -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        location, options = resolve(reference, "safety")
        extra: dict[str, Any] = dict(options)
        with weights_needed(reference, "safety"):
            self._processor = CLIPImageProcessor.from_pretrained(location, **extra)
            model = StableDiffusionSafetyChecker.from_pretrained(location, use_safetensors=True, **extra)
        self._model = model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def flagged(self, pictures: Sequence[Image.Image], batch_size: int = 16) -> list[bool]:
        found: list[bool] = []
        for start in range(0, len(pictures), batch_size):
            batch = [picture.convert("RGB") for picture in pictures[start : start + batch_size]]
            pixels = self._processor(images=batch, return_tensors="pt")["pixel_values"].to(self._device)
            # The checker blackens what it flags: a stand-in is given to it.
            nothing = np.zeros((len(batch), 1, 1, 3), np.float32)
            found += [bool(one) for one in self._model(clip_input=pixels, images=nothing)[1]]
        return found
