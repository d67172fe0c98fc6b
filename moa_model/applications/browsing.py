"""Prior-first browsing (fig. 7): many scenes by the prior alone, one is picked, and people are put into that one."""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image


def browse(pipe: Any, prompt: str, seeds: Iterable[int], **call: Any) -> dict[int, Image.Image]:
    """The prior's picture of every seed; ``swap.draw`` with the picked one's seed puts people into it.

    Nothing is bound, so this is the stock pipeline, whether or not an adapter is attached.
    """
    return {seed: pipe(prompt, generator=torch.Generator().manual_seed(seed), **call).images[0] for seed in seeds}
