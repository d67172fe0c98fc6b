"""Is only the subject changed? Background change and prior fidelity, which the MoA paper shows and does not measure.

Swapping the subject at a fixed seed should change the subject's pixels alone, and leave the scene that the prior draws
for that prompt and seed (arXiv 2404.11565, figs. 7, 9). With d(a, b) = mean |a − b| over pixels and channels, in grey
levels (0-255), outside every person in either picture, for the subject itself is meant to change:

    background change = mean d(two subjects, same prompt and seed) ÷ mean d(same subject and prompt, two seeds)
    prior fidelity    = mean d(a picture, the prior's own of the same prompt and seed)

0 is the scene untouched in both. `evaluation.scoring` says which pictures are paired.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

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
