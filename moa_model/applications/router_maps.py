"""Router maps as pictures (figs. 6 and 19): how much of every latent pixel is the personalization expert's.

Axes: T recorded steps, L MoA layers, H W latent pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from moa_model.recording import RecordedStep

# From the prior's dark to the expert's light: dark blue, violet, orange, pale yellow.
_COLORS = np.array([(13, 8, 56), (126, 30, 130), (246, 130, 60), (252, 250, 190)], np.float32)


def router_maps(steps: Sequence[RecordedStep], row: int = -1) -> Float[Tensor, "T L H W"]:
    """R_1 of every step and layer at latent size, for one row of the U-Net's batch (the last: the last picture).

    `steps` is what ``adapter.recording()`` collected. Steps that the prior draws alone (t > 800) record nothing.
    """
    return torch.stack(
        [
            torch.cat([_resized(1 - prior[row], step.latent_size) for _, prior in sorted(step.router().items())])
            for step in steps
        ]
    )


def heat(map_HW: Float[Tensor, "H W"]) -> Image.Image:
    """A map of 0 … 1 as a picture of its size: dark is the prior's, light the personalization expert's."""
    value_HW = map_HW.float().clamp(0, 1).cpu().numpy()
    stops = np.linspace(0, 1, len(_COLORS))
    channels = [np.interp(value_HW, stops, _COLORS[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def _resized(map_hw: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "1 H W"]:
    return functional.interpolate(map_hw[None, None], size, mode="nearest")[0]
