"""What is cut out, and what stands around it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing.subject_crops import subject_crop

GREY = [127, 127, 127]


def noise(seed: int = 0, width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_a_crop_without_its_background() -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 12:20] = True
    crop = np.array(subject_crop(Image.new("RGB", (32, 32), "red"), mask, (12, 8, 20, 24), 64))
    assert crop.shape == (64, 64, 3)
    assert crop[32, 32].tolist() == [255, 0, 0]
    assert crop[0, 0].tolist() == crop[32, 4].tolist() == GREY
    assert np.array_equal(crop, np.array(subject_crop(Image.new("RGB", (32, 32), "red"), mask, None, 64)))


def test_a_crop_with_its_background_is_grey_beyond_the_edges() -> None:
    crop = np.array(subject_crop(Image.new("RGB", (32, 32), "red"), None, (0, 0, 8, 32), 64))
    assert crop[32, 2].tolist() == GREY and crop[32, 40].tolist() == [255, 0, 0]


def test_without_mask_and_box_the_whole_picture_is_padded() -> None:
    crop = np.array(subject_crop(Image.new("RGB", (32, 16), "red"), None, None, 32))
    assert crop[16, 0].tolist() == crop[16, 31].tolist() == [255, 0, 0]
    assert crop[0, 16].tolist() == crop[31, 16].tolist() == GREY
    with pytest.raises(ValueError, match="does not fit"):
        subject_crop(noise(), np.ones((3, 3), bool), None, 32)


BOX = st.tuples(*[st.floats(-50, 90)] * 4)


@given(
    box=BOX,
    zoom=st.floats(0.5, 2),
    flip=st.booleans(),
    shift=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    degrees=st.floats(-180, 180),
)
def test_any_box_gives_a_crop(
    box: tuple[float, float, float, float], zoom: float, flip: bool, shift: tuple[float, float], degrees: float
) -> None:
    crop = subject_crop(
        Image.new("RGB", (32, 32), "red"), None, box, 24, flip=flip, zoom=zoom, shift=shift, degrees=degrees
    )
    assert crop.size == (24, 24)
    assert np.asarray(crop).max(-1).min() >= 100, "red or grey, and nowhere the black that a turn leaves in its corners"


def test_a_turn_is_about_the_middle_and_changes_no_size() -> None:
    """A bar that stands upright lies down, as long as it was; a whole turn is none."""
    image = Image.new("RGB", (64, 64), "red")
    image.paste("blue", (28, 16, 36, 48))
    box = (0, 0, 64, 64)
    upright = np.asarray(subject_crop(image, None, box, 77)).astype(int)
    lying = np.asarray(subject_crop(image, None, box, 77, degrees=90.0)).astype(int)
    assert np.abs(lying - np.rot90(upright)).max(-1).mean() < 8  # edges differ by a pixel
    assert np.abs(np.asarray(subject_crop(image, None, box, 77, degrees=360.0)).astype(int) - upright).mean() < 8
    counter_clockwise = subject_crop(image, None, (28, 16, 36, 32), 77, degrees=20.0)  # the bar's upper half
    blue = np.asarray(counter_clockwise)[:, :, 2] > 128
    rows, columns = np.nonzero(blue)
    assert np.polyfit(rows, columns, 1)[0] > 0.2, "its upper end has moved to the left"


def test_noise_is_around_the_mask_and_beyond_the_edges_and_never_on_it() -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 0:20] = True
    red = Image.new("RGB", (32, 32), "red")
    crop = np.asarray(subject_crop(red, mask, None, 64, noise=np.random.default_rng(0)))
    assert crop[32, 32].tolist() == [255, 0, 0]
    above, beyond = crop[:4].reshape(-1, 3), crop[:, 2]
    assert len(np.unique(above, axis=0)) > 50 and len(np.unique(beyond, axis=0)) > 20
    again = np.asarray(subject_crop(red, mask, None, 64, noise=np.random.default_rng(0)))
    assert np.array_equal(crop, again)
