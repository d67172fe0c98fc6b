"""The prior's own run of a prompt and seed, and how a picture with subjects keeps to it wherever they are not.

A mixture's background is the prior's only at first sight: R_0 is near 1 there, but the prior is asked at latents that
the personalization expert has changed elsewhere, and answers to the change. So the latents themselves are put back, as
in blended latent diffusion (arXiv 2206.02779). What that needs from its users, a mask, the routers know: they say in
every step and layer whose a pixel is. Ours, not the paper's.

Axes: B pictures, C latent channels, H W latent pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.recording import RecordedStep

EDGE = (0.25, 0.35)  # narrower shows the seam, wider loses hats and loose hair to the scene
_OTHER_NOISE = 0.05  # batches of another size change a latent by a thousandth of that; another seed by twenty times it
Callback: TypeAlias = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]
"""diffusers' ``callback_on_step_end``: (pipe, index, timestep, tensors) → tensors to go on with."""


@dataclass(frozen=True)
class Scene:
    """The latents after every step of a run, and its pictures.

        scene = Scene.drawn(pipe, prompt=prompt, generator=torch.Generator().manual_seed(3))
        with scene.kept(adapter) as keep:
            pipe(prompt, generator=torch.Generator().manual_seed(3), cross_attention_kwargs=bound, **keep)

    One scene serves any number of casts. Every call needs a fresh generator of the same seed.
    """

    latents: Sequence[Float[Tensor, "B C H W"]]
    timesteps: Sequence[float]
    images: Any = None
    """What the call gave as ``images``: pictures, or tensors where it asked for them."""

    @classmethod
    def drawn(cls, pipe: Any, callback_on_step_end: Callback | None = None, **call: Any) -> "Scene":
        """Call the pipeline and keep its latents; nothing is bound, so it is the prior that draws."""
        latents: list[Tensor] = []
        timesteps: list[float] = []

        def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            given = callback_on_step_end(pipe, index, timestep, tensors) if callback_on_step_end else {}
            latents.append(given.get("latents", tensors["latents"]).clone())
            timesteps.append(float(timestep))
            return given

        images = pipe(**(call | {"return_dict": True}), callback_on_step_end=keep).images
        return cls(latents, timesteps, images)

    def picture(self, row: int) -> "Scene":
        """One picture's part of a batch."""
        return Scene([one[row : row + 1].clone() for one in self.latents], self.timesteps, [self.images[row]])

    @classmethod
    def batch(cls, scenes: Sequence["Scene"]) -> "Scene":
        """Scenes of the same steps as one batch, in their order."""
        latents = [torch.cat(step) for step in zip(*(scene.latents for scene in scenes), strict=True)]
        return cls(latents, scenes[0].timesteps, [image for scene in scenes for image in scene.images])

    @contextmanager
    def kept(
        self,
        adapter: MoAAdapter,
        edge: tuple[float, float] = EDGE,
        people_BHW: Float[Tensor, "B H W"] | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> Iterator[dict[str, Callback]]:
        """Arguments for the same call with subjects: outside the people its latents are this scene's after every step.

        A pixel is the scene's where R_1, mean over layers and the largest of all steps so far, is below ``edge[0]``,
        the picture's own above ``edge[1]``, and in between a blend. The largest so far, since the prior's person has to
        give way too, and is seen by the routers in the first steps. A subject's strength does not shrink the region.
        ``people_BHW``: where people are known to be already (1, elsewhere 0), as in a real photo.
        ``callback_on_step_end``: the caller's own, which sees the latents first.

        The last step's latents are what is decoded, so that outside the people the picture is the scene's. Before
        that, schedulers of several steps (UniPC, DPM) also have a memory of their own, which is the call's.
        The call raises UserError where its steps, pictures, size or noise are not the scene's.
        """
        if not 0 <= edge[0] < edge[1] <= 1:
            raise UserError(f"The edge of a scene is two shares in order within 0 to 1, not {edge[0]} and {edge[1]}.")
        with adapter.recording(subject_maps=False) as steps:
            keeper = Keeper(self, steps, edge, people_BHW)

            def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
                given = callback_on_step_end(pipe, index, timestep, tensors) if callback_on_step_end else {}
                own_BCHW = given.get("latents", tensors["latents"])
                keeper.require_as_many_steps(getattr(pipe, "num_timesteps", None))
                return {**given, "latents": keeper.put_back(index, float(timestep), own_BCHW)}

            yield {"callback_on_step_end": keep}


def keeping(scene: Scene | None, adapter: MoAAdapter, **options: Any) -> AbstractContextManager[dict[str, Any]]:
    """``scene.kept``, or no arguments at all where there is no scene to keep."""
    return nullcontext({}) if scene is None else scene.kept(adapter, **options)


class Keeper:
    """Puts a scene's latents back, step by step; a new call begins at index 0."""

    def __init__(
        self,
        scene: Scene,
        steps: list[RecordedStep],
        edge: tuple[float, float],
        known_BHW: Float[Tensor, "B H W"] | None = None,
    ) -> None:
        self._scene, self._steps, self._edge, self._known_BHW = scene, steps, edge, known_BHW
        self._people_BHW = known_BHW

    def put_back(self, index: int, timestep: float, own_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The latents to go on with after step ``index``. Empties the list of recorded steps, which are read once."""
        self._require_the_same_call(index, timestep, own_BCHW)
        if index == 0:
            self._people_BHW = self._known_BHW
        scene_BCHW = self._scene.latents[index].to(own_BCHW)
        for step in self._steps:
            # The pictures are the last rows: the unconditional half comes first.
            now_BHW = step.mean_asked()[-len(own_BCHW) :]
            self._people_BHW = now_BHW if self._people_BHW is None else self._people_BHW.to(now_BHW).maximum(now_BHW)
        if not self._steps and index == 0:
            self._require_the_same_noise(own_BCHW, scene_BCHW)
        self._steps.clear()
        if self._people_BHW is None:  # the prior has been alone so far
            return scene_BCHW
        low, high = self._edge
        share_B1HW = ((self._people_BHW - low) / (high - low)).clamp(0, 1)[:, None].to(own_BCHW)
        return torch.lerp(scene_BCHW, own_BCHW, share_B1HW)

    def require_as_many_steps(self, steps: int | None) -> None:
        """Raises UserError if a call of so many steps is not the scene's; None = not known."""
        if steps not in (None, len(self._scene.latents)):
            raise UserError(
                f"The scene to keep has {len(self._scene.latents)} steps, this call {steps}: draw both with as many."
            )

    def _require_the_same_call(self, index: int, timestep: float, own_BCHW: Tensor) -> None:
        latents, timesteps = self._scene.latents, self._scene.timesteps
        if index < len(latents) and latents[index].shape == own_BCHW.shape and abs(timesteps[index] - timestep) < 1e-3:
            return
        there = f"timestep {timesteps[index]:g} of {list(latents[index].shape)}" if index < len(latents) else "nothing"
        raise UserError(
            f"The scene to keep has {there} at step {index + 1}, this call timestep {timestep:g} of "
            f"{list(own_BCHW.shape)}: draw both with the same prompts, steps, scheduler and size."
        )

    def _require_the_same_noise(self, own_BCHW: Tensor, scene_BCHW: Tensor) -> None:
        """In a first step that the prior draws alone both are the same, but where people are known."""
        apart_BHW = (own_BCHW - scene_BCHW).float().square().mean(dim=1)
        if self._known_BHW is not None:
            apart_BHW = apart_BHW * (self._known_BHW.to(apart_BHW) <= 0)
        if float(apart_BHW.mean().sqrt()) > _OTHER_NOISE * float(scene_BCHW.float().std()):
            raise UserError(
                "The scene to keep was drawn from other noise or by another scheduler: give both calls a fresh "
                "generator of the same seed."
            )
