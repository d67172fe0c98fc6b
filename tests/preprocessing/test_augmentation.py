"""Crops of one subject: the first plain, the others each varied as the settings say, and the same every time."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.settings import ShardSettings, load_settings
from preprocessing.augmentation import fresh_crops, in_effect, sample_crops, subject_variant
from preprocessing.subject_crops import subject_crop

GREY = [127, 127, 127]
PLAIN = {"zoom": (1.0, 1.0), "shift": 0.0, "flip": 0.0, "probability": 1.0, "rotation": 0.0}
PLAIN |= {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "blur": 0.0}
BOX = (12, 8, 20, 24)
SUBJECTS = [{"box": list(BOX)}]


def settings(variants: int = 4, backgrounds: tuple[str, ...] = ("grey",), **changes: Any) -> ShardSettings:
    """32 pixels, no variation but the named ones."""
    shard = load_settings("demo").shard
    how = shard.augmentation.model_copy(update={**PLAIN, "backgrounds": list(backgrounds), **changes})
    return shard.model_copy(update={"reference_pixels": 32, "reference_variants": variants, "augmentation": how})


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Soft colours, so that a turn or a shift changes every pixel a little."""
    y, x = np.mgrid[0:32, 0:32]
    return Image.fromarray(np.stack([60 + 4 * x, 60 + 4 * y, 120 + x - y], -1).astype(np.uint8))


@pytest.fixture(scope="module")
def instances() -> np.ndarray:
    made = np.zeros((32, 32), np.uint8)
    made[8:24, 12:20] = 1
    return made


def varied(image: Image.Image, instances: np.ndarray, count: int = 40, **changes: Any) -> np.ndarray:
    """[crops, 32, 32, 3]: all but the plain one."""
    crops = sample_crops(image, instances, SUBJECTS, settings(count + 1, **changes), "key")
    return np.stack([np.asarray(crop) for crop in crops[1:]]).astype(int)


def test_the_first_is_plain_whatever_the_settings_are(image: Image.Image, instances: np.ndarray) -> None:
    wild = load_settings("sd15").shard.model_copy(update={"reference_pixels": 32})
    plain = subject_crop(image, instances == 1, BOX, 32)
    assert np.array_equal(sample_crops(image, instances, SUBJECTS, wild, "key")[0], plain)
    assert (np.asarray(plain)[:, 1] == GREY).all()


def test_without_variation_all_are_plain(image: Image.Image, instances: np.ndarray) -> None:
    assert (varied(image, instances) == np.asarray(subject_crop(image, instances == 1, BOX, 32))).all()


def test_backgrounds_come_in_turn(image: Image.Image, instances: np.ndarray) -> None:
    crops = sample_crops(image, instances, SUBJECTS, settings(6, ("grey", "kept", "noise")), "key")
    edges = [np.asarray(crop)[:, 1] for crop in crops]
    for grey in (0, 3):
        assert (edges[grey] == GREY).all()
    for kept in (1, 4):
        assert np.array_equal(crops[kept], subject_crop(image, None, BOX, 32))
    for noise in (2, 5):
        assert np.ptp(edges[noise].astype(int), axis=0).min() > 100
        assert np.array_equal(np.asarray(crops[noise])[12:20, 13:19], np.asarray(crops[0])[12:20, 13:19])
    assert not np.array_equal(edges[2], edges[5])
    only = sample_crops(image, instances, SUBJECTS, settings(3, ("noise",)), "key")
    assert (np.asarray(only[0])[:, 1] == GREY).all() and not (np.asarray(only[1])[:, 1] == GREY).all()


def test_half_are_mirrored(image: Image.Image, instances: np.ndarray) -> None:
    plain = np.asarray(subject_crop(image, instances == 1, BOX, 32)).astype(int)
    mirrored = [np.array_equal(crop, plain[:, ::-1]) for crop in varied(image, instances, flip=0.5)]
    assert 10 <= sum(mirrored) <= 30


def test_each_setting_changes_what_it_is_named_for(image: Image.Image, instances: np.ndarray) -> None:
    """By as much as it allows, both ways, and about as often as its probability says."""
    plain = np.asarray(subject_crop(image, instances == 1, BOX, 32)).astype(int)
    person = (slice(None), slice(6, 26), slice(12, 20))  # inside the mask in every crop

    def changed(**changes: Any) -> np.ndarray:
        crops = varied(image, instances, probability=0.5, **changes)
        some = np.array([not np.array_equal(crop, plain) for crop in crops])
        assert 10 <= some.sum() <= 30, changes
        return crops[some]

    grey, level = plain[person[1:]], plain[person[1:]].mean()
    brighter = changed(brightness=0.4)[person].mean((1, 2, 3)) / level
    assert 0.58 < brighter.min() < 0.8 and 1.2 < brighter.max() < 1.42
    spread = changed(contrast=0.4)[person].std((1, 2)).mean(-1) / grey.std((0, 1)).mean()
    assert 0.55 < spread.min() < 0.8 and 1.2 < spread.max() < 1.45
    colour = np.ptp(changed(saturation=0.4)[person], axis=-1).mean((1, 2)) / np.ptp(grey, axis=-1).mean()
    assert 0.55 < colour.min() < 0.8 and 1.2 < colour.max() < 1.45
    sharp = np.abs(np.diff(plain, axis=1)).max()
    assert np.abs(np.diff(changed(blur=3.0), axis=2)).max((1, 2, 3)).min() < 0.6 * sharp
    assert len(changed(rotation=30.0)) >= 10


def test_moved_and_scaled(image: Image.Image, instances: np.ndarray) -> None:
    """By the person's place and size in the crop: 8 x 16 pixels of 19.2, of which 32 are made."""
    people = [(crop != 127).any(-1) for crop in varied(image, instances, zoom=(0.5, 2.0), shift=0.0)]
    heights = np.array([rows.any(1).sum() for rows in people])
    assert heights.min() < 18 and heights.max() == 32 and np.median(heights) > 18
    people = [(crop != 127).any(-1) for crop in varied(image, instances, shift=0.1)]
    middles = np.array([np.mean(np.nonzero(rows), axis=1) for rows in people]) - 15.5
    assert -4.5 < middles.min() < -1.5 and 1.5 < middles.max() < 4.5


def test_a_variant_depends_on_key_subject_and_number_alone(image: Image.Image, instances: np.ndarray) -> None:
    shard = load_settings("sd15").shard.model_copy(update={"reference_pixels": 32})
    crops = [np.asarray(crop) for crop in sample_crops(image, instances, SUBJECTS, shard, "key")]
    longer = shard.model_copy(update={"reference_variants": 9})
    again = sample_crops(image, instances, [*SUBJECTS, *SUBJECTS], longer, "key")
    assert all(np.array_equal(crop, other) for crop, other in zip(crops, again, strict=False))
    assert not np.array_equal(again[2], again[9 + 2])  # of the second subject
    assert not np.array_equal(crops[2], sample_crops(image, instances, SUBJECTS, shard, "other")[2])


def test_one_more_setting_leaves_the_others_numbers(image: Image.Image, instances: np.ndarray) -> None:
    """The same crops are brightened whether or not they may be turned and moved."""
    alone = varied(image, instances, probability=0.5, brightness=0.4)
    plain = np.asarray(subject_crop(image, instances == 1, BOX, 32)).astype(int)
    both = varied(image, instances, probability=0.5, brightness=0.4, blur=0.2, flip=0.5)
    change = [(crops[:, 8:24, 14:18].mean((1, 2, 3)) / plain[8:24, 14:18].mean()).round(1) for crops in (alone, both)]
    assert change[0].tolist() == change[1].tolist() and len(set(change[0].tolist())) > 4


def test_fresh_crops_differ_at_every_position_and_are_plain_as_often(image: Image.Image, instances: np.ndarray) -> None:
    shard = settings(4, ("grey", "kept"), zoom=(1.3, 1.6), shift=0.05)  # never as good as plain, however rounded
    both = np.where(instances, 1, 0).astype(np.uint8)
    both[0:6, 0:6] = 2
    subjects = [*SUBJECTS, {"box": [0, 0, 6, 6]}]

    def at(position: int, seed: int = 0) -> list[np.ndarray]:
        return [np.asarray(crop) for crop in fresh_crops(image, both, subjects, shard, "key", seed, position)]

    crops = [at(position) for position in range(60)]
    assert all(len(one) == 2 for one in crops)
    assert all(np.array_equal(a, b) for a, b in zip(at(7), crops[7], strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(at(7, seed=1) + at(8, 1), crops[7] + crops[8], strict=True))
    plain = [np.array_equal(one[0], subject_crop(image, both == 1, BOX, 32)) for one in crops]
    assert 7 <= sum(plain) <= 25
    assert [np.array_equal(one[1], subject_crop(image, both == 2, [0, 0, 6, 6], 32)) for one in crops] == plain
    others = {one[0].tobytes() for one, same in zip(crops, plain, strict=True) if not same}
    assert len(others) > 20
    assert all(np.array_equal(a, b) for a, b in zip(at(3), crops[3], strict=True))


def test_only_what_changes_a_crop_is_in_effect() -> None:
    shard = settings(3, ("grey", "kept"))
    assert in_effect(settings(1, ("noise",), blur=3.0)) == in_effect(settings(1)) == {}
    assert in_effect(shard) == in_effect(settings(3, ("noise", "kept", "grey"), probability=0.1))
    assert in_effect(shard) != in_effect(settings(4, ("grey", "kept")))
    assert in_effect(settings(3, probability=0.0, blur=2.0, rotation=9.0)) == in_effect(settings(3))
    for name, value in {"zoom": (0.9, 1.0), "shift": 0.1, "flip": 0.1, "rotation": 1.0, "saturation": 0.1}.items():
        assert in_effect(settings(3, **{name: value})) != in_effect(settings(3)), name
    assert in_effect(settings(3, blur=1.0)) != in_effect(settings(3, blur=1.0, probability=0.5))


def test_a_variant_by_itself_is_the_one_among_all(image: Image.Image, instances: np.ndarray) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        subject_variant(image, np.ones((3, 3), bool), BOX, settings(), 1, np.random.default_rng(0))
