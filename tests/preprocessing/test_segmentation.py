"""From logits to people: thresholds, overlaps, order; the real class on tiny weights; the fallback on faces."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UserError
from infra.settings import ModelReference, SegmentSettings
from preprocessing.segmentation import Person, open_segmenter, people_from_faces, separate_people
from tests.tiny_models import tiny_mask2former

SETTINGS = SegmentSettings(
    score_threshold=0.8,
    mask_threshold=0.5,
    overlap_threshold=0.8,
    min_area=0.01,
    face_fallback=True,
    batch_size=2,
    workers=1,
)


def logits(*queries: tuple[float, tuple[int, int, int, int], float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries of (person probability, box, mask probability) on 20 x 20 pixels; classes: person, tree, none."""
    classes, masks = [], []
    for score, (x1, y1, x2, y2), inside in queries:
        classes.append(torch.log(torch.tensor([score, (1 - score) / 2, (1 - score) / 2])))
        mask = torch.full((20, 20), 0.01)
        mask[y1:y2, x1:x2] = inside
        masks.append(torch.logit(mask))
    return torch.stack(classes), torch.stack(masks)


def test_people_are_numbered_from_left_to_right() -> None:
    people = separate_people(*logits((0.9, (12, 2, 18, 18), 0.9), (0.95, (1, 2, 7, 18), 0.9)), [0], SETTINGS)
    left, right = people.people
    assert (left.instance, left.box, right.box) == (1, (1, 2, 7, 18), (12, 2, 18, 18))
    assert left.score == pytest.approx(0.95, abs=1e-4) and left.area == pytest.approx(96 / 400)
    assert (people.instances[2:18, 1:7] == 1).all() and (people.instances[2:18, 12:18] == 2).all()
    assert people.instances.dtype == np.uint8 and (people.instances > 0).sum() == 192


def test_the_background_belongs_to_nobody() -> None:
    """A lone person does not swallow the picture: its mask is cut at its own probability."""
    people = separate_people(*logits((0.99, (5, 5, 10, 10), 0.9)), [0], SETTINGS)
    assert (people.instances > 0).sum() == 25


def test_unsure_queries_faint_masks_and_specks_are_dropped() -> None:
    for query in [(0.7, (0, 0, 9, 9), 0.9), (0.9, (0, 0, 9, 9), 0.4), (0.9, (0, 0, 1, 3), 0.9)]:
        people = separate_people(*logits(query), [0], SETTINGS)
        assert people.people == () and not people.instances.any()


def test_other_classes_are_not_people() -> None:
    classes, masks = logits((0.02, (0, 0, 9, 9), 0.9))
    assert separate_people(classes, masks, [0], SETTINGS).people == ()


def test_a_duplicate_leaves_no_hole_in_the_winner() -> None:
    """Two queries for one person, each the better one on half of it: one person with the whole mask comes out."""
    classes, masks = logits((0.9, (4, 4, 16, 16), 0.8), (0.89, (4, 4, 16, 16), 0.8))
    masks[1, 4:10, 4:16] = torch.logit(torch.tensor(0.95))
    people = separate_people(classes, masks, [0], SETTINGS)
    assert len(people.people) == 1 and (people.instances == 1).sum() == 144


def test_overlaps_go_to_the_surer_person() -> None:
    people = separate_people(*logits((0.85, (0, 0, 10, 20), 0.7), (0.95, (9, 0, 20, 20), 0.9)), [0], SETTINGS)
    assert len(people.people) == 2 and (people.instances[:, 9] == 2).all()


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
def test_whatever_the_logits_the_map_and_the_list_agree(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(count, 3, generator=generator) * 3
    masks = torch.randn(count, 20, 20, generator=generator).cumsum(1)
    found = separate_people(classes, masks, [0], SETTINGS)
    assert set(np.unique(found.instances)) - {0} == {person.instance for person in found.people}
    assert [person.instance for person in found.people] == list(range(1, len(found.people) + 1))
    for person in found.people:
        x1, y1, x2, y2 = (int(value) for value in person.box)
        mask = found.instances == person.instance
        assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
        assert Person.from_record(person.record()) == person


def test_faces_become_heads_and_shoulders() -> None:
    faces = [{"box": [40, 10, 50, 22], "score": 0.9}, {"box": [10, 12, 20, 24], "score": 0.8}]
    people = people_from_faces(faces, (64, 64))
    assert people.mask_source == "face_box" and [person.score for person in people.people] == [0.8, 0.9]
    assert people.instances[18, 15] == 1 and people.instances[16, 45] == 2
    assert people.instances[40, 15] == 1 and people.instances[2, 2] == 0  # shoulders, background
    assert people_from_faces([{"box": [5, 5, 5, 9], "score": 1.0}], (64, 64)).people == ()
    assert people_from_faces([{"box": [-90, -90, -80, -80], "score": 1.0}], (64, 64)).people == ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mask2former(tmp_path_factory.mktemp("mask2former"))


def test_the_real_class_from_a_folder(folder: Path) -> None:
    loose = SETTINGS.model_copy(update={"score_threshold": 0.0, "overlap_threshold": 0.0, "min_area": 0.0})
    segmenter = open_segmenter(ModelReference(location=str(folder)), loose)
    noise = np.random.default_rng(0).integers(0, 255, (3, 24, 40, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    first, again = segmenter.segment(images), segmenter.segment(images)
    assert [people.instances.shape for people in first] == [(24, 40)] * 3
    for one, other in zip(first, again, strict=True):
        assert one.people == other.people and np.array_equal(one.instances, other.instances)
    assert any(people.people for people in first)
    assert not list(folder.glob("*.bin"))


def test_padding_does_not_shift_masks(folder: Path) -> None:
    """Pictures of different sizes share a batch by padding: each gets maps of its own size."""
    from transformers import Mask2FormerImageProcessor

    Mask2FormerImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, size_divisor=32).save_pretrained(folder)
    loose = SETTINGS.model_copy(update={"score_threshold": 0.0, "overlap_threshold": 0.0, "min_area": 0.0})
    segmenter = open_segmenter(ModelReference(location=str(folder)), loose)
    pixels = np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    wide, square = Image.fromarray(pixels), Image.fromarray(pixels[:, :48])
    assert [people.instances.shape for people in segmenter.segment([wide, square])] == [(48, 64), (48, 48)]


def test_unknown_and_missing_backends_say_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="transformers, detectron2"):
        open_segmenter(ModelReference(location=str(folder), backend="sam"), SETTINGS)
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as where it is not installed
    with pytest.raises(UserError, match="build detectron2 from its repository"):
        open_segmenter(ModelReference(location=str(folder), backend="detectron2"), SETTINGS)
    with pytest.raises(UserError, match="is not at"):
        open_segmenter(ModelReference(location=str(folder / "nowhere")), SETTINGS)
