"""Variation: how different are the pictures of one subject and prompt when only the seed changes?

A model that always falls back on its training set's pose draws the same picture for every seed. Published figures of
diversity are the mean pairwise LPIPS (BicycleGAN, Zhu et al., arXiv 1711.11586); the distance here is whichever
`evaluation.perceptual` was opened. Compare it with the prior's own variation, never across distances.
"""

import numpy as np
from jaxtyping import Float


def variation(distances_NN: Float[np.ndarray, "N N"]) -> Float[np.ndarray, " N"] | None:
    """Per picture the mean distance to the pictures of the other seeds; `None` for fewer than two.

    Their mean is the mean over all pairs.
    """
    count = len(distances_NN)
    if count < 2:
        return None
    # The diagonal is zero: a picture is not compared with itself.
    return distances_NN.sum(axis=1) / (count - 1)
