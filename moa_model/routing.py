"""Who paints a pixel: the router's weights (eqs. 5 and 7), and what a user may say instead of it.

Axes: B batch, N latent pixels of one layer, H W height and width of a map, C channels.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from infra.errors import UserError
from moa_model.layers import layer_size


class FixedRouter(Protocol):
    """R_1, the personalization expert's weight, decided by somebody else than a layer's router."""

    def weight(self, layer: int, pixels: int) -> Float[Tensor, "B N"]:
        """R_1 for the MoA layer of this index, which has so many pixels; B may be 1."""


class MaskRouter:
    """The same picture of R_1 in every layer: 1 = personalization, 0 = prior."""

    def __init__(self, mask_BHW: Float[Tensor, "B H W"], latent_size: tuple[int, int]) -> None:
        self._mask_BHW, self._latent_size = mask_BHW, latent_size
        self._by_pixels: dict[int, Tensor] = {}

    def weight(self, layer: int, pixels: int) -> Float[Tensor, "B N"]:
        """The mask at the layer's size: each of its pixels takes the mean of what it covers."""
        if pixels not in self._by_pixels:
            size = layer_size(self._latent_size, pixels)
            resized = functional.adaptive_avg_pool2d(self._mask_BHW.float(), size)
            self._by_pixels[pixels] = resized.flatten(1).to(self._mask_BHW.dtype)
        return self._by_pixels[pixels]


class RecordedRouter:
    """The maps of another run's step, by layer index; ``prior_BN`` are its R_0."""

    def __init__(self, prior_BN: Mapping[int, Float[Tensor, "B N"]]) -> None:
        self._prior_BN = prior_BN

    def weight(self, layer: int, pixels: int) -> Float[Tensor, "B N"]:
        """As recorded. Raises UserError where the other run had another size."""
        recorded = self._prior_BN[layer]
        if recorded.shape[-1] != pixels:
            raise UserError(
                f"The recorded router has {recorded.shape[-1]} pixels in layer {layer}, this picture {pixels}: "
                "record it at the same size."
            )
        return 1 - recorded


def route(logits_BN2: Float[Tensor, "B N 2"]) -> Float[Tensor, "B N 2"]:
    """R = softmax(f(Z)) over prior and personalization (eq. 5)."""
    return logits_BN2.softmax(dim=-1)


def fixed(weight_BN: Float[Tensor, "b N"], like_BNC: Float[Tensor, "B N C"]) -> Float[Tensor, "B N 2"]:
    """R from a given R_1 (b = B, or 1 for all rows alike)."""
    weight_BN = weight_BN.to(like_BNC).expand(len(like_BNC), -1)
    return torch.stack([1 - weight_BN, weight_BN], dim=-1)


def steered(
    router_BN2: Float[Tensor, "B N 2"], share_B: Float[Tensor, " B"] | None = None, skip_below: float = 0.0
) -> Float[Tensor, "B N 2"]:
    """R with R_1 scaled by ``share_B`` and, below ``skip_below``, set to 0; R_0 = 1 − R_1.

    A share of 0 is the prior alone, 1 (or None) the router's own word.
    """
    if share_B is None and not skip_below:
        return router_BN2
    weight_BN = router_BN2[..., 1]
    if skip_below:
        weight_BN = weight_BN.masked_fill(weight_BN < skip_below, 0.0)
    if share_B is not None:
        weight_BN = weight_BN * share_B[:, None].to(weight_BN.dtype)
    return torch.stack([1 - weight_BN, weight_BN], dim=-1)


def mix(
    router_BN2: Float[Tensor, "B N 2"], prior_BNC: Float[Tensor, "B N C"], personal_BNC: Float[Tensor, "B N C"]
) -> Float[Tensor, "B N C"]:
    """R_0 ⊙ prior + R_1 ⊙ personal (eq. 7) in one kernel; exact at R = (1, 0), since R_0 + R_1 = 1."""
    return torch.lerp(personal_BNC, prior_BNC, router_BN2[..., :1].to(prior_BNC.dtype))
