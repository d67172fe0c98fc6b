"""Subject swap at a fixed seed (figs. 7 and 9): another person in the scene that the prior draws anyway."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from moa_model.adapter import MoAAdapter
from moa_model.binding import SubjectsByWord


def draw(pipe: Any, adapter: MoAAdapter, prompt: str, subjects: SubjectsByWord, seed: int, **call: Any) -> Image.Image:
    """One picture: `prompt` with `subjects` at its words (as in `MoAAdapter.bind`), from the noise of `seed`.

    Without subjects it is the prior's own picture, bit for bit: the scene into which others are put.
    """
    bound = adapter.bind(pipe, prompt, subjects)
    noise = torch.Generator().manual_seed(seed)  # on the CPU, so that a seed draws the same scene on every device
    return pipe(prompt, generator=noise, cross_attention_kwargs=bound, **call).images[0]


def swap(
    pipe: Any, adapter: MoAAdapter, prompt: str, casts: Sequence[SubjectsByWord], seed: int, **call: Any
) -> list[Image.Image]:
    """The same prompt and seed once for each of `casts`."""
    return [draw(pipe, adapter, prompt, cast, seed, **call) for cast in casts]
