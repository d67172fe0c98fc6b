"""Where does the router look? Its map against the mask of the people in the picture that it drew.

The MoA paper shows such maps (arXiv 2404.11565, figs. 6 and 19) and gives no number. A map is the weight of the
personalization expert, 1 − R_0 (eq. 7), averaged over layers and steps. A centred subject gives a high score to any map
that is strong in the middle, so every score stands beside that of a plain centre blob.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from evaluation.measures import roc_auc


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
