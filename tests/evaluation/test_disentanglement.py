import numpy as np
import pytest
from PIL import Image

from evaluation.disentanglement import background_difference, centre_blob, resize_map, score_map
from evaluation.people import Found


def test_difference_is_in_grey_levels_outside_both_people() -> None:
    first = np.full((8, 8, 3), 100, np.uint8)
    second = first.copy()
    first[:4, :4] = 0  # the first picture's person
    second[4:, 4:] = 255  # the second picture's
    second[0, 7] = 140  # one of the 32 pixels left
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4, :4] = masks[1, 4:, 4:] = True
    found = background_difference(
        Image.fromarray(first), Image.fromarray(second), [Found.from_mask(masks[0])], [Found.from_mask(masks[1])]
    )
    assert found == pytest.approx(40 / 32)


def test_without_people_the_whole_picture_counts() -> None:
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (10, 20, 30))
    assert background_difference(black, grey, [], []) == pytest.approx(20)


def test_people_who_fill_the_picture_leave_nothing_to_compare() -> None:
    image = Image.new("RGB", (8, 8))
    assert background_difference(image, image, [Found(box=(0.0, 0.0, 8.0, 8.0))], []) is None
    with pytest.raises(ValueError, match="cannot be compared"):
        background_difference(image, Image.new("RGB", (4, 4)), [], [])


def disc(side: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[0:side, 0:side]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def test_a_map_like_the_mask_scores_one_and_a_blob_less() -> None:
    mask = disc(32, x=24, y=20, radius=6)
    perfect = score_map(mask.astype(np.float32), mask)
    blob = score_map(centre_blob(32, 32), mask)
    assert perfect is not None and blob is not None
    assert perfect.auc == perfect.iou == 1.0
    assert perfect.contrast == 1.0
    assert blob.auc < 0.9 and blob.iou < 0.4


def test_a_flat_map_knows_nothing() -> None:
    flat = score_map(np.full((4, 4), 0.5, np.float32), disc(32, 16, 16, 8))
    assert flat is not None
    assert flat.auc == 0.5
    assert flat.contrast == pytest.approx(0)


def test_an_empty_or_full_mask_has_no_score() -> None:
    assert score_map(centre_blob(8, 8), np.zeros((8, 8), bool)) is None
    assert score_map(centre_blob(8, 8), np.ones((8, 8), bool)) is None


def test_a_wide_map_is_resized_to_the_picture() -> None:
    assert resize_map(np.zeros((4, 8), np.float32), (16, 32)).shape == (16, 32)
    blob = centre_blob(4, 8)
    assert blob.shape == (4, 8) and blob[2, 4] == blob.max()
