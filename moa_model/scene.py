"""The prior's own run of a prompt and seed, and how a picture with subjects keeps to it wherever they are not.

A mixture's background is the prior's only at first sight: R_0 is near 1 there, but the prior is asked at latents that
the personalization expert has changed elsewhere, and answers to the change. So the latents themselves are put back, as
in blended latent diffusion (arXiv 2206.02779). What that needs from its users, a mask, the routers know: they say in
every step and layer whose a pixel is. Ours, not the paper's.

Axes: B pictures, C latent channels, H W latent pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.recording import RecordedStep

EDGE = (0.25, 0.35)  # narrower shows the seam, wider loses hats and loose hair to the scene
_Callback = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Scene:
    """The latents after every step of a run, and its pictures.

        scene = Scene.drawn(pipe, prompt=prompt, generator=torch.Generator().manual_seed(3))
        with scene.kept(adapter) as keep:
            pipe(prompt, generator=torch.Generator().manual_seed(3), cross_attention_kwargs=bound, **keep)

    One scene serves any number of casts.
    """

    latents: Sequence[Float[Tensor, "B C H W"]]
    images: Any = None

    @classmethod
    def drawn(cls, pipe: Any, **call: Any) -> "Scene":
        """Call the pipeline and keep its latents; nothing is bound, so it is the prior that draws."""
        latents: list[Tensor] = []

        def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            latents.append(tensors["latents"].clone())
            return {}

        images = pipe(**call, callback_on_step_end=keep).images
        return cls(latents, images)

    @contextmanager
    def kept(self, adapter: MoAAdapter, edge: tuple[float, float] = EDGE) -> Iterator[dict[str, _Callback]]:
        """Arguments for the same call with subjects: outside the people its latents stay this scene's.

        A pixel is the scene's where R_1, mean over layers and the largest of all steps so far, is below ``edge[0]``,
        the picture's own above ``edge[1]``, and in between a blend. The largest so far, since the prior's person has to
        give way too, and is seen by the routers in the first steps. A subject's strength does not shrink the region.
        The call raises UserError where it has other steps, pictures or sizes than the scene's.
        """
        if not 0 <= edge[0] < edge[1] <= 1:
            raise UserError(f"The edge of a scene is two shares in order within 0 to 1, not {edge[0]} and {edge[1]}.")
        with adapter.recording(subject_maps=False) as steps:
            yield {"callback_on_step_end": _Keeper(self.latents, steps, edge)}


class _Keeper:
    """The callback of one call: puts the scene's latents back."""

    def __init__(
        self, scene: Sequence[Float[Tensor, "B C H W"]], steps: list[RecordedStep], edge: tuple[float, float]
    ) -> None:
        self._scene, self._steps, self._edge = scene, steps, edge
        self._seen = len(steps)
        self._people_BHW: Tensor | None = None

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own_BCHW = tensors["latents"]
        if index >= len(self._scene) or self._scene[index].shape != own_BCHW.shape:
            raise UserError(
                f"The scene to keep has {len(self._scene)} steps of latents {list(self._scene[0].shape)}, this call is "
                f"at step {index + 1} with {list(own_BCHW.shape)}: draw both with the same prompts, steps and size."
            )
        scene_BCHW = self._scene[index].to(own_BCHW)
        if len(self._steps) > self._seen:
            self._seen = len(self._steps)
            now_BHW = _people(self._steps[-1], len(own_BCHW))
            self._people_BHW = now_BHW if self._people_BHW is None else self._people_BHW.maximum(now_BHW)
        if self._people_BHW is None:  # the prior has been alone so far
            return {"latents": scene_BCHW}
        low, high = self._edge
        share_B1HW = ((self._people_BHW - low) / (high - low)).clamp(0, 1)[:, None].to(own_BCHW.dtype)
        return {"latents": torch.lerp(scene_BCHW, own_BCHW, share_B1HW)}


def _people(step: RecordedStep, pictures: int) -> Float[Tensor, "B H W"]:
    """R_1, mean over layers, as the routers said it: without the subjects' strength."""
    router_BHW = 1 - step.mean_router()[-pictures:]  # the pictures are the last rows: the unconditional half is first
    if step.share_B is None:
        return router_BHW
    share_B = step.share_B[-pictures:].to(router_BHW)
    return router_BHW / torch.where(share_B > 0, share_B, 1)[:, None, None]
