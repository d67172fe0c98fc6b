"""Is only the subject changed? What happens to the rest of the picture, and where the router looks.

All differences are mean absolute differences over pixels and channels, in grey levels (0-255), outside every person in
either picture: the subject itself is meant to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from evaluation.measures import roc_auc
from evaluation.people import Found, people_mask

# With less of the picture left than this, what remains says nothing about the scene.
MIN_BACKGROUND = 0.02


def background_difference(
    first: Image.Image, second: Image.Image, first_people: Sequence[Found], second_people: Sequence[Found]
) -> float | None:
    """Mean |first − second| in grey levels outside the people of both; `None` where people fill the picture.

    ValueError when the pictures differ in size.
    """
    if first.size != second.size:
        raise ValueError(f"pictures of {first.size} and {second.size} pixels cannot be compared.")
    outside_HW = ~(people_mask(first, first_people) | people_mask(second, second_people))
    if outside_HW.mean() < MIN_BACKGROUND:
        return None
    a_HW3, b_HW3 = (np.asarray(image.convert("RGB"), np.float32) for image in (first, second))
    return float(np.abs(a_HW3 - b_HW3)[outside_HW].mean())


@dataclass(frozen=True)
class RouterScore:
    """How well one map separates people from background.

    `auc` is threshold-free. `iou` compares the mask with the map's strongest pixels, as many of them as the mask has:
    no threshold to choose, and any other map (a centre blob) can be held to the same rule. `contrast` is the mean
    weight inside minus outside.
    """

    auc: float
    iou: float
    contrast: float


def score_map(map_hw: Float[np.ndarray, "h w"], mask_HW: Bool[np.ndarray, "H W"]) -> RouterScore | None:
    """Score a map of the *personalization* weight (1 − R_0) against a mask; `None` if the mask is empty or full."""
    weight_HW = resize_map(map_hw, mask_HW.shape)
    auc = roc_auc(weight_HW.ravel(), mask_HW.ravel())
    if auc is None:
        return None
    count = int(mask_HW.sum())
    strongest = np.zeros(mask_HW.size, bool)
    # Stable order, so that ties do not depend on the machine.
    strongest[np.argsort(-weight_HW.ravel(), kind="stable")[:count]] = True
    both = int((strongest & mask_HW.ravel()).sum())
    contrast = float(weight_HW[mask_HW].mean() - weight_HW[~mask_HW].mean())
    return RouterScore(auc=auc, iou=both / (2 * count - both), contrast=contrast)


def centre_blob(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """The map that knows nothing but that subjects stand in the middle: a Gaussian, σ a quarter of each side."""
    y_h1 = (np.arange(height)[:, None] + 0.5) / height - 0.5
    x_1w = (np.arange(width)[None, :] + 0.5) / width - 0.5
    return np.exp(-(y_h1**2 + x_1w**2) / (2 * 0.25**2)).astype(np.float32)


def resize_map(map_hw: Float[np.ndarray, "h w"], shape: tuple[int, ...]) -> Float[np.ndarray, "H W"]:
    """Bilinear resize of a map to (height, width)."""
    image = Image.fromarray(np.asarray(map_hw, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
