"""How different are the pictures of one subject and prompt when only the seed changes?

A model that always falls back on its training set's pose draws the same picture for every seed. Published figures use
LPIPS; its weights are downloaded on first use, which nothing here does, so the distance is between CLIP's image
embeddings: 1 − cosine. Compare it with the prior's own variation, never across CLIPs.
"""

import numpy as np
from jaxtyping import Float


def variation(images_ND: Float[np.ndarray, "N D"]) -> float | None:
    """Mean of 1 − cosine over all pairs of pictures (unit vectors, one per seed); `None` for fewer than two."""
    count = len(images_ND)
    if count < 2:
        return None
    similarity_NN = images_ND @ images_ND.T
    pairs = similarity_NN[np.triu_indices(count, k=1)]
    return float(1.0 - pairs.mean())
