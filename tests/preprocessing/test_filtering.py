"""Each filter takes whom it should, for its reason, and nobody when it is off."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from infra.settings import FilterSettings
from preprocessing.filtering import cut_share, is_too_crowded, people_left_out, share_on_mask, sharpness
from preprocessing.photos import Reason
from preprocessing.segmentation import People, number_people
from preprocessing.stages import NO_FILTERS

SIDE = 64
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
SOFT = NOISE.filter(ImageFilter.GaussianBlur(6))


def people(*boxes: tuple[int, int, int, int]) -> People:
    masks = []
    for x1, y1, x2, y2 in boxes:
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y1:y2, x1:x2] = True
        masks.append((mask, 0.9))
    return number_people(masks, (SIDE, SIDE))


def face(x1: float, y1: float, x2: float, y2: float) -> dict[str, object]:
    return {"box": [x1, y1, x2, y2], "landmarks": [], "score": 1.0}


IN_THE_MIDDLE = people((20, 10, 44, 60))
FACE = face(24, 12, 40, 30)
AT_THE_LEFT_EDGE = people((0, 10, 20, 60))
AT_THE_BOTTOM = people((20, 30, 44, 64))


@pytest.mark.parametrize(
    ("changes", "image", "group", "faces", "others", "reason"),
    [
        ({"need_face": True}, NOISE, IN_THE_MIDDLE, {}, [], Reason.NO_FACE),
        ({"need_face": True}, NOISE, IN_THE_MIDDLE, {1: FACE}, [], None),
        ({"min_face": 17.0}, NOISE, IN_THE_MIDDLE, {1: FACE}, [], Reason.FACE_TOO_SMALL),
        ({"min_face": 16.0}, NOISE, IN_THE_MIDDLE, {1: FACE}, [], None),
        ({"min_face": 17.0}, NOISE, IN_THE_MIDDLE, {}, [], None),
        ({"min_face_on_mask": 0.9}, NOISE, IN_THE_MIDDLE, {1: face(30, 12, 56, 30)}, [], Reason.FACE_OUTSIDE_MASK),
        ({"min_face_on_mask": 0.9}, NOISE, IN_THE_MIDDLE, {1: FACE}, [], None),
        ({"min_face_on_mask": 0.5}, NOISE, IN_THE_MIDDLE, {}, [FACE], Reason.FACE_OUTSIDE_MASK),
        ({"min_face_on_mask": 0.5}, NOISE, IN_THE_MIDDLE, {}, [face(50, 2, 60, 12)], None),
        ({"min_sharpness": 50.0}, SOFT, IN_THE_MIDDLE, {1: FACE}, [], Reason.BLURRED),
        ({"min_sharpness": 50.0}, NOISE, IN_THE_MIDDLE, {1: FACE}, [], None),
        ({"max_cut": 0.5}, NOISE, AT_THE_LEFT_EDGE, {}, [], Reason.CUT_OFF),
        ({"max_cut": 0.5}, NOISE, people((20, 0, 44, 30)), {}, [], Reason.CUT_OFF),
        ({"max_cut": 0.5}, NOISE, AT_THE_BOTTOM, {}, [], None),
        ({}, SOFT, AT_THE_LEFT_EDGE, {}, [FACE], None),
    ],
)
def test_each_filter_takes_its_own(
    changes: dict[str, object],
    image: Image.Image,
    group: People,
    faces: dict[int, dict[str, object]],
    others: list[dict[str, object]],
    reason: Reason | None,
) -> None:
    settings = FilterSettings.model_validate({**NO_FILTERS.model_dump(), **changes})
    left_out = people_left_out(image, group, faces, others, settings)
    assert [one.reason for one in left_out] == ([reason] if reason else [])
    assert people_left_out(image, group, faces, others, NO_FILTERS) == []
    for one in left_out:
        assert one.instance == 1 and one.detail and one.record()["reason"] == one.reason.value


def test_only_those_whom_a_filter_takes_are_left_out() -> None:
    group = people((0, 10, 20, 60), (24, 10, 44, 60))
    settings = NO_FILTERS.model_copy(update={"max_cut": 0.5, "need_face": True})
    left_out = people_left_out(NOISE, group, {2: FACE}, [], settings)
    assert [(one.instance, one.reason) for one in left_out] == [(1, Reason.CUT_OFF)]


def test_too_many_people() -> None:
    group = people((0, 10, 20, 60), (24, 10, 44, 60))
    assert [is_too_crowded(group, NO_FILTERS.model_copy(update={"max_people": most})) for most in (0, 1, 2)] == [
        False,
        True,
        False,
    ]


def test_measures() -> None:
    mask = AT_THE_LEFT_EDGE.instances == 1
    assert cut_share(mask, AT_THE_LEFT_EDGE.people[0]) == 1.0
    assert share_on_mask(mask, (2, 12, 18, 30)) == 1.0 and share_on_mask(mask, (40, 12, 60, 30)) == 0.0
    assert 0.4 < share_on_mask(mask, (10, 12, 30, 30)) < 0.6
    # Outside the picture, or without area: no face.
    assert share_on_mask(mask, (-50, -50, -40, -40)) == 0.0
    assert sharpness(NOISE, (5, 5, 5, 9)) == 0.0 and sharpness(NOISE, (-90, -90, -80, -80)) >= 0.0
    levels = [sharpness(NOISE.filter(ImageFilter.GaussianBlur(radius)), (10, 10, 50, 50)) for radius in (0, 1, 3)]
    assert levels[0] > levels[1] > levels[2]
