"""Maps against masks."""

import numpy as np
import pytest

from evaluation.router_maps import centre_blob, resize_map, score_map


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
