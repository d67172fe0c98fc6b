"""A kept scene for methods without a router: a segmenter says where the people are.

MoA's routers tell it for nothing. Whoever has none can still ask a segmenter, and a fair comparison lets them: of the
prior's picture, whose person has to give way, and of the method's own free picture, whose person needs the room.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from evaluation.people import Locate, people_mask
from evaluation.protocol import Drawing
from flows.painting import Painter
from moa_model import Scene


class Draws(Protocol):
    """Whatever draws a batch of prompts, each with its subjects' crops by word; `more` goes on to the pipeline."""

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Any]], seeds: Sequence[int], **more: Any
    ) -> list[Drawing]:
        """One drawing a prompt."""


class KeptByMask:
    """A painter whose pictures keep the prior's scene but for the people, prior's and own."""

    def __init__(self, painter: Draws, prior: Painter, locate: Locate, batch: int) -> None:
        """`prior`: a painter without an adapter, for the scenes. `batch`: pictures a call; IP-Adapter's takes one."""
        self._painter, self._prior, self._locate, self._batch = painter, prior, locate, batch

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Any]], seeds: Sequence[int], **more: Any
    ) -> list[Drawing]:
        """Every picture twice: freely, to see where its person stands, and with the scene kept."""
        drawn = []
        for start in range(0, len(prompts), self._batch):
            part = slice(start, start + self._batch)
            batch = prompts[part], subjects[part], seeds[part]
            scene = self._prior.scenes(prompts[part], seeds[part])
            free = [drawing.picture for drawing in self._painter.draw(*batch, **more)]
            region_B1HW = self._people([scene.images, free], scene)
            drawn += self._painter.draw(*batch, callback_on_step_end=put_back(scene, region_B1HW), **more)
        return drawn

    def _people(self, pictures: Sequence[Sequence[Any]], scene: Scene) -> Float[Tensor, "B 1 H W"]:
        """The latent pixels that anybody touches in any version of a picture."""
        size = (scene.latents[0].shape[-2], scene.latents[0].shape[-1])
        found = []
        for version in pictures:
            masks = [people_mask(one, who) for one, who in zip(version, self._locate(version), strict=True)]
            mask_BHW = torch.stack([torch.from_numpy(mask) for mask in masks])
            found.append(functional.adaptive_max_pool2d(mask_BHW[:, None].float(), size))
        return torch.stack(found).amax(dim=0)


def put_back(scene: Scene, region_B1HW: Float[Tensor, "B 1 H W"]) -> Any:
    """A pipeline's callback: the scene's latents wherever the region is 0."""

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own_BCHW = tensors["latents"]
        return {"latents": torch.lerp(scene.latents[index].to(own_BCHW), own_BCHW, region_B1HW.to(own_BCHW))}

    return callback
