"""A subject cut out of its photo: what the image encoder sees of a person, when training and when drawing alike."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image

_GREY = (127, 127, 127)
_BORDER = 0.1  # room around the subject's box, as a fraction of its longer side


def subject_crop(
    image: Image.Image,
    mask: Bool[np.ndarray, "height width"] | None,
    box: Sequence[float] | None,
    pixels: int,
    *,
    flip: bool = False,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    degrees: float = 0.0,
    noise: np.random.Generator | None = None,
) -> Image.Image:
    """A subject as the image encoder sees it: pixels x pixels, RGB.

    The square around `box` [x1, y1, x2, y2] with some room, grey beyond the picture's edges; with a mask also grey
    wherever it is False. Without a box the mask's own box, and without either the whole picture, padded to a square.
    `zoom` > 1 cuts closer, `shift` moves the square by fractions of its side, `degrees` turns what it shows
    counter-clockwise about its centre. `noise` draws pixels of random colours in place of the grey.
    """
    image, border = image.convert("RGB"), _BORDER
    stencil = None
    if mask is not None:
        if mask.shape != (image.height, image.width):
            raise ValueError(f"mask {mask.shape} does not fit a picture of {image.height} x {image.width}")
        stencil = Image.fromarray(mask.astype(np.uint8) * 255)
        if box is None and mask.any():
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    if box is None:
        box, border = (0, 0, image.width, image.height), 0.0
    x1, y1, x2, y2 = (float(value) for value in box)
    side = max(x2 - x1, y2 - y1, 1.0) * (1 + 2 * border) / zoom
    centre = (x1 + x2) / 2 + shift[0] * side, (y1 + y2) / 2 + shift[1] * side
    # The square that holds a turned one; two pixels more, for both are rounded.
    turn = math.radians(degrees)
    cut = side * (abs(math.cos(turn)) + abs(math.sin(turn))) + (2.0 if degrees else 0.0)
    corners = [round(value + half) for half in (-cut / 2, cut / 2) for value in centre]
    size = max(corners[2] - corners[0], 1), max(corners[3] - corners[1], 1)
    # Cut by pasting: Pillow's crop fills with black what lies outside, which CLIP would take for part of the picture.
    square = Image.new("RGB", size, _GREY) if noise is None else _noise(noise, size)
    square.paste(image, (-corners[0], -corners[1]), stencil)
    if degrees:
        square = _middle(square.rotate(degrees, Image.Resampling.BICUBIC), max(round(side), 1))
    if flip:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return square.resize((pixels, pixels), Image.Resampling.BICUBIC)


def _noise(stream: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(stream.integers(0, 256, (size[1], size[0], 3), np.uint8))


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
