"""A subject's crops, each varied in another way, so that a person is learned and not the pose of one photo.

Variant 0 is plain: cut out before grey, as subjects are when a picture is drawn. Every other one is moved, scaled,
mirrored and, now and then, turned, lit otherwise or blurred, before grey, in its place, or before noise. All of it is a
pure function of the settings and of the names that its random stream is made of.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageEnhance, ImageFilter

from infra.augmentation_settings import AugmentationSettings, Background
from infra.settings import ShardSettings
from preprocessing.subject_crops import subject_crop

_NOW_AND_THEN = ("rotation", "brightness", "contrast", "saturation", "blur")  # each with the settings' probability
_LIGHT = {
    "brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color,
}  # fmt: skip


def subject_variant(
    image: Image.Image,
    mask: Bool[np.ndarray, "height width"],
    box: Sequence[float],
    settings: ShardSettings,
    variant: int,
    stream: np.random.Generator,
) -> Image.Image:
    """One variant of a subject, `reference_pixels` square; for variant 0 nothing is drawn from the stream."""
    pixels, how = settings.reference_pixels, settings.augmentation
    if variant == 0:
        return subject_crop(image, mask, box, pixels)
    # Every number is drawn whatever the settings are: one that is switched on leaves the others as they were.
    zoom = stream.uniform(*how.zoom)
    shift_x, shift_y = stream.uniform(-how.shift, how.shift, 2).tolist()
    mirrored = stream.random() < how.flip
    chances, strengths = stream.random(len(_NOW_AND_THEN)), stream.uniform(-1, 1, len(_NOW_AND_THEN))
    change = {
        name: getattr(how, name) * strength if chance < how.probability else 0.0
        for name, chance, strength in zip(_NOW_AND_THEN, chances.tolist(), strengths.tolist(), strict=True)
    }
    background = background_of(how, variant)
    crop = subject_crop(
        image,
        None if background == "kept" else mask,
        box,
        pixels,
        flip=mirrored,
        zoom=zoom,
        shift=(shift_x, shift_y),
        degrees=change["rotation"],
        noise=stream if background == "noise" else None,
    )
    for name, enhance in _LIGHT.items():
        if change[name]:
            crop = enhance(crop).enhance(1 + change[name])
    return crop.filter(ImageFilter.GaussianBlur(abs(change["blur"]))) if change["blur"] else crop


def background_of(augmentation: AugmentationSettings, variant: int) -> Background:
    """What is around the subject in a variant: the settings' backgrounds in turn, grey in variant 0."""
    return augmentation.backgrounds[variant % len(augmentation.backgrounds)] if variant else "grey"


def sample_crops(
    image: Image.Image,
    instances: UInt8[np.ndarray, "height width"],
    subjects: Sequence[Mapping[str, Any]],
    settings: ShardSettings,
    key: str,
) -> list[Image.Image]:
    """`reference_variants` crops of each of a sample's subjects in turn, by streams of (key, subject, variant)."""
    return [
        subject_variant(image, instances == number, subject["box"], settings, variant, _stream(key, number, variant))
        for number, subject in enumerate(subjects, start=1)
        for variant in range(settings.reference_variants)
    ]


def fresh_crops(
    image: Image.Image,
    instances: UInt8[np.ndarray, "height width"],
    subjects: Sequence[Mapping[str, Any]],
    settings: ShardSettings,
    key: str,
    seed: int,
    position: int,
) -> list[Image.Image]:
    """One crop of each of a sample's subjects, another one at every position of a training.

    As often plain, and before each background, as among `sample_crops`; all of a sample's are the same variant.
    """
    variant = int(_stream(key, seed, position).integers(settings.reference_variants))
    return [
        subject_variant(
            image, instances == number, subject["box"], settings, variant, _stream(key, number, variant, seed, position)
        )
        for number, subject in enumerate(subjects, start=1)
    ]


def in_effect(settings: ShardSettings) -> dict[str, Any]:
    """The settings of the augmentation that decide `sample_crops`: where they are the same, so are the crops."""
    how, varied = settings.augmentation, range(1, settings.reference_variants)
    if not varied:
        return {}
    values = {**how.model_dump(mode="json"), "backgrounds": [background_of(how, variant) for variant in varied]}
    if not how.probability or not any(values[name] for name in _NOW_AND_THEN):
        return {name: value for name, value in values.items() if name not in (*_NOW_AND_THEN, "probability")}
    return values


def _stream(*names: str | int) -> np.random.Generator:
    digest = hashlib.sha256(" ".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
