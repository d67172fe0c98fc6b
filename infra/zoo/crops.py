"""One person cut out of a labelled picture, as the identity encoder and CLIP will be shown people."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infra.zoo.pictures import LabelledPictures

GREY = 127


def person_crop(
    pictures: LabelledPictures, index: int, instance: int, pixels: int, rng: np.random.Generator, keep: float = 0.3
) -> UInt8[np.ndarray, "p p 3"]:
    """The square around a person; grey outside the picture and, but for a share `keep`, outside the person.

    Margin and place jitter a little, so that a crop made from a predicted mask looks familiar.
    """
    picture, mask = pictures.pixels[index], pictures.instances[index] == instance
    if rng.random() >= keep:
        picture = np.where(mask[..., None], picture, GREY).astype(np.uint8)
    rows, columns = np.nonzero(mask)
    side = int(max(np.ptp(rows), np.ptp(columns))) + 1
    side = round(side * (1 + 2 * rng.uniform(0.0, 0.1)))
    left = round((columns.min() + columns.max() + 1 - side) / 2 + side * rng.uniform(-0.03, 0.03))
    top = round((rows.min() + rows.max() + 1 - side) / 2 + side * rng.uniform(-0.03, 0.03))
    square = Image.new("RGB", (side, side), (GREY,) * 3)
    square.paste(Image.fromarray(picture), (-left, -top))
    if rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(square.resize((pixels, pixels), Image.Resampling.BICUBIC))
