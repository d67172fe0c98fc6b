"""A kept scene for methods without a router: the segmenter says where the people of the prior's picture are.

MoA's routers give that region for nothing. Whoever has none can still ask a segmenter, and a fair comparison lets them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from evaluation.people import Locate, people_mask
from evaluation.protocol import Drawing
from flows.painting import open_pipeline
from infra.settings import Settings
from moa_model import Scene


class Draws(Protocol):
    """Whatever draws a batch of prompts, each with its subjects' crops by word; `more` goes on to the pipeline."""

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Any]], seeds: Sequence[int], **more: Any
    ) -> list[Drawing]:
        """One drawing a prompt."""


class KeptByMask:
    """A painter whose pictures keep the prior's scene but for the people that the prior drew, a latent pixel wider."""

    def __init__(self, painter: Draws, settings: Settings, locate: Locate) -> None:
        self._painter, self._settings, self._locate = painter, settings, locate
        self._stock = open_pipeline(settings.models)  # the prior's own: nothing is attached to it
        self._scenes: dict[tuple[str, int], tuple[Scene, Tensor]] = {}

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Any]], seeds: Sequence[int], **more: Any
    ) -> list[Drawing]:
        """One picture a call, since IP-Adapter takes one."""
        drawn = []
        for prompt, cast, seed in zip(prompts, subjects, seeds, strict=True):
            scene, region = self._scene(prompt, seed)
            keep = {"callback_on_step_end": _put_back(scene, region)}
            drawn += self._painter.draw([prompt], [cast], [seed], **keep, **more)
        return drawn

    def _scene(self, prompt: str, seed: int) -> tuple[Scene, Tensor]:
        if (prompt, seed) not in self._scenes:
            options, side = self._settings.evaluate, self._settings.ingest.pixels
            scene = Scene.drawn(
                self._stock,
                prompt=prompt,
                generator=torch.Generator().manual_seed(seed),
                num_inference_steps=options.inference_steps,
                guidance_scale=options.guidance_scale,
                height=side,
                width=side,
            )
            picture = scene.images[0]
            mask_HW = torch.from_numpy(people_mask(picture, self._locate([picture])[0])).float()
            size = (scene.latents[0].shape[-2], scene.latents[0].shape[-1])
            touched = functional.adaptive_max_pool2d(mask_HW[None, None], size)
            self._scenes[prompt, seed] = scene, functional.max_pool2d(touched, 3, 1, 1)
        return self._scenes[prompt, seed]


def _put_back(scene: Scene, region_11HW: Tensor) -> Any:
    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.lerp(scene.latents[index], tensors["latents"], region_11HW)}

    return callback
