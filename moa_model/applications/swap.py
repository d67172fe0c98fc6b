"""Subject swap at a fixed seed (figs. 7 and 9): another person in the scene that the prior draws anyway."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from moa_model.adapter import MoAAdapter
from moa_model.binding import SubjectsByWord
from moa_model.scene import Scene, keeping


def draw(
    pipe: Any,
    adapter: MoAAdapter,
    prompt: str,
    subjects: SubjectsByWord,
    seed: int,
    scene: Scene | None = None,
    **call: Any,
) -> Image.Image:
    """One picture: `prompt` with `subjects` at its words (as in `MoAAdapter.bind`), from the noise of `seed`.

    Without subjects it is the prior's own picture, bit for bit: the scene into which others are put. Given as `scene`
    (`scene_of`), it stays as it is wherever the routers see no person.
    """
    bound = adapter.bind(pipe, prompt, subjects)
    with keeping(scene, adapter) as keep:
        return pipe(prompt, generator=_noise(seed), cross_attention_kwargs=bound, **keep, **call).images[0]


def scene_of(pipe: Any, prompt: str, seed: int, **call: Any) -> Scene:
    """The prior's run of a prompt and seed, for `draw` to keep to."""
    return Scene.drawn(pipe, prompt=prompt, generator=_noise(seed), **call)


def swap(
    pipe: Any,
    adapter: MoAAdapter,
    prompt: str,
    casts: Sequence[SubjectsByWord],
    seed: int,
    scene: Scene | None = None,
    **call: Any,
) -> list[Image.Image]:
    """The same prompt and seed once for each of `casts`."""
    return [draw(pipe, adapter, prompt, cast, seed, scene, **call) for cast in casts]


def _noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)  # on the CPU, so that a seed draws the same scene on every device
