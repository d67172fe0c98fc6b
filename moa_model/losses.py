"""The three losses of MoA training (eqs. 9-12), and a fourth that keeps the background (ours).

Axes: B batch, C latent channels, H W latent height and width, N pixels of one layer, S subjects. Masks are 1 on a
person, 0 elsewhere. Every loss is first taken per picture and then averaged over the batch, so that a batch split over
any number of workers has the same gradient. Maps of layers of different size are brought to the latent's size
by nearest neighbour (open in the paper): a coarse pixel speaks for every latent pixel that it covers.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from moa_model.layers import layer_size


class Losses(NamedTuple):
    """Scalars of one training step; ``total`` is what is minimised.

    Eq. 12 and ours: masked + λ_r · router + λ_o · object + λ_p · preservation.
    """

    total: Tensor
    masked: Tensor
    router: Tensor
    object: Tensor
    preservation: Tensor


def masked_loss(
    prediction_BCHW: Float[Tensor, "B C H W"], target_BCHW: Float[Tensor, "B C H W"], mask_BHW: Float[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Mean squared error on the foreground alone: Σ M ⊙ (Z − Ẑ)² / Σ M (eq. 9). An empty mask counts 0."""
    error_BHW = (prediction_BCHW - target_BCHW).square().mean(dim=1)
    return _foreground_mean(error_BHW, mask_BHW).mean()


def router_loss(
    prior_weight_BHW: Float[Tensor, "B H W"],
    mask_BHW: Float[Tensor, "B H W"],
    normalisation: Literal["mean", "sum"] = "mean",
    foreground: float = 0.0,
) -> Float[Tensor, ""]:
    """‖(1 − M) ⊙ (1 − R)‖², R the mean of R_0 over layers: the background is the prior's (eq. 10).

    The paper does not say whether over pixels it is a sum or a mean. λ_r = 1e-4 on a ``sum`` over 64 × 64 pixels
    equals about 0.4 on a ``mean``; on a mean 1e-4 does nothing and 0.1 works.

    ``foreground`` weighs a mirror term, ‖M ⊙ R‖², which the paper does not have: the people are the personalization
    expert's. Without it a router can lower its loss by leaving *every* pixel to the prior, while the expert's output
    grows in exchange; small models do just that, and their routers tell people and background hardly apart.
    """
    square_BHW = ((1 - mask_BHW) * (1 - prior_weight_BHW)).square()
    if foreground:
        square_BHW = square_BHW + foreground * (mask_BHW * prior_weight_BHW).square()
    per_picture_B = square_BHW.mean(dim=(1, 2)) if normalisation == "mean" else square_BHW.sum(dim=(1, 2))
    return per_picture_B.mean()


def object_loss(
    attention_BSHW: Float[Tensor, "B S H W"], mask_BSHW: Float[Tensor, "B S H W"], present_BS: Float[Tensor, "B S"]
) -> Float[Tensor, ""]:
    """Balanced L1: each subject's attention, mean on its background minus mean on its foreground (eq. 11).

    This is FastComposer's definition, which the paper cites. Eq. 12 as printed has (1 − A_s) in the background term,
    which would reward attention on the background: an erratum. Subjects that are not ``present`` (1 or 0) do not count.
    """
    background_BS = _foreground_mean(attention_BSHW, 1 - mask_BSHW)
    foreground_BS = _foreground_mean(attention_BSHW, mask_BSHW)
    seen_BS = present_BS * (mask_BSHW.sum(dim=(2, 3)) > 0)
    balance_B = ((background_BS - foreground_BS) * seen_BS).sum(dim=1) / seen_BS.sum(dim=1).clamp_min(1)
    return balance_B.mean()


def preservation_loss(
    prediction_BCHW: Float[Tensor, "B C H W"], prior_BCHW: Float[Tensor, "B C H W"], mask_BHW: Float[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Mean squared difference from the prior's own prediction on the background: Σ (1−M) ⊙ (Ẑ − Ẑ_prior)² / Σ (1−M).

    Ours, not the paper's. Eq. 9 asks nothing of the background and eq. 10 only that the expert's *weight* be small
    there; what the expert says on those pixels is free. An empty background counts 0.
    """
    return masked_loss(prediction_BCHW, prior_BCHW, 1 - mask_BHW)


def mean_over_layers(maps: Iterable[Float[Tensor, "B *S N"]], size: tuple[int, int]) -> Float[Tensor, "B *S H W"]:
    """The mean of the layers' maps at latent size; layers of one size are added before they are enlarged."""
    by_pixels: dict[int, list[Tensor]] = {}
    for layer_map in maps:
        at_least_32_bits = layer_map.to(torch.promote_types(layer_map.dtype, torch.float32))
        by_pixels.setdefault(layer_map.shape[-1], []).append(at_least_32_bits)
    count = sum(map(len, by_pixels.values()))
    if not count:
        raise ValueError("no layer recorded a map: record at least one block")
    enlarged = [enlarge(torch.stack(layers).sum(dim=0), size) for layers in by_pixels.values()]
    return torch.stack(enlarged).sum(dim=0) / count


def enlarge(map_N: Float[Tensor, "*B N"], size: tuple[int, int]) -> Float[Tensor, "*B H W"]:
    """A layer's map, flat as the layer has it, at latent size by nearest neighbour."""
    height, width = layer_size(size, map_N.shape[-1])
    lead = map_N.shape[:-1]
    return functional.interpolate(map_N.reshape(-1, 1, height, width), size, mode="nearest").reshape(*lead, *size)


def _foreground_mean(value: Float[Tensor, "*B H W"], mask: Float[Tensor, "*B H W"]) -> Float[Tensor, "*B"]:
    """Σ M v / Σ M, or 0 where the mask is empty."""
    total = mask.sum(dim=(-2, -1))
    return (value * mask).sum(dim=(-2, -1)) / torch.where(total > 0, total, 1)
