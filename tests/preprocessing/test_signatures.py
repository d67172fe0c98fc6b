"""Signatures: what happens to a photo on its way leaves them nearly as they were, other photos have others."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.settings import ModelReference
from preprocessing.near_duplicates import hash_distances
from preprocessing.shards import encode_json, read_tar, write_tar
from preprocessing.signatures import SignedPhoto, Signer, dct_hashes, joined, mirrored, read_signatures, sign_shard
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from tests.tiny_models import tiny_clip

PICTURES = [draw(picture_at(3, index), 128).image for index in range(12)]


def encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def scaled(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC)


def cut(image: Image.Image, pixels: int) -> Image.Image:
    """So many pixels less on each side, enlarged again as ingestion would."""
    box = (pixels, pixels, image.width - pixels, image.height - pixels)
    return image.crop(box).resize(image.size, Image.Resampling.LANCZOS)


def distance(one: Image.Image, other: Image.Image) -> int:
    return int(hash_distances(dct_hashes(one)[None], dct_hashes(other)[None])[0, 0])


def flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda image: encoded(image, 50), 4),
        (lambda image: scaled(scaled(image, 64), 128), 4),
        (lambda image: scaled(image, 512), 4),
        (flipped, 0),
        (lambda image: encoded(flipped(scaled(image, 96)), 75), 4),
        (lambda image: cut(image, 3), 8),  # 2.3 %
        (lambda image: cut(image, 6), 8),  # 4.7 %
        (lambda image: image.point(lambda value: min(255, round(value * 1.1))), 6),
    ],
    ids=["jpeg 50", "half size", "four times", "mirrored", "mirrored, smaller, jpeg", "cut", "cut more", "brighter"],
)
def test_a_changed_copy_has_nearly_the_same_hashes(change: Callable[[Image.Image], Image.Image], most: int) -> None:
    assert max(distance(picture, change(picture)) for picture in PICTURES) <= most


def test_other_pictures_have_other_hashes() -> None:
    pairs = [distance(a, b) for place, a in enumerate(PICTURES) for b in PICTURES[:place]]
    assert min(pairs) > 8 and np.median(pairs) > 20


def test_mirroring_is_exact_and_undoes_itself() -> None:
    for picture in PICTURES[:4]:
        # 128 is a multiple of 32, so that pixels are averaged in mirrored groups; the middles have odd edges.
        assert mirrored(dct_hashes(picture))[0] == dct_hashes(flipped(picture))[0]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), st.lists(st.integers(0, 2**64 - 1), min_size=3))
def test_distances_agree_with_counting_bits(one: list[int], other: list[int]) -> None:
    a, b = np.array(one, np.uint64), np.array(other[:3], np.uint64)
    ways = [(int(x), int(y)) for turned in (a, mirrored(a)) for x, y in [(turned[0], value) for value in b]]
    ways += [(int(x), int(b[0])) for turned in (a, mirrored(a)) for x in turned]
    found = hash_distances(a[None], b[None])
    assert found.dtype == np.uint8 and int(found[0, 0]) == min((x ^ y).bit_count() for x, y in ways)
    assert int(hash_distances(b[None], a[None])[0, 0]) == int(found[0, 0])  # whoever asks


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(folder=folder)
    return Signer(ModelReference(location=str(folder)), batch_size=5)


def ingested(pictures: list[Image.Image]) -> bytes:
    samples = []
    for index, picture in enumerate(pictures):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        about = {"source": "folder", "origin": f"{index}.png", "identity": "7" if index == 1 else None}
        samples.append((f"key{index:02d}", {"jpg": buffer.getvalue(), "json": encode_json(about)}))
    return write_tar(samples)


def test_an_embedding_is_a_unit_vector_that_mirroring_leaves_alone(signer: Signer) -> None:
    embeds = signer.embeds([PICTURES[0], flipped(PICTURES[0]), PICTURES[1]]).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(embeds[0], embeds[1], atol=2e-3)
    assert np.abs(embeds[0] - embeds[2]).max() > 2e-3
    assert signer.embeds([]).shape == (0, embeds.shape[1])


def test_a_shard_of_signatures_is_read_back_and_repeats_to_the_byte(signer: Signer, tmp_path: Path) -> None:
    tar = sign_shard(ingested(PICTURES), signer)
    assert sign_shard(ingested(PICTURES), signer) == tar
    assert len(list(read_tar(tar))) == len(PICTURES)
    read = read_signatures([tar])
    assert read.photos[1] == SignedPhoto("key01", "folder", "1.png", "7") and read.photos[0].identity == ""
    assert read.photos[1].name == "folder:1.png"
    assert (read.hashes == np.array([dct_hashes(picture) for picture in PICTURES])).all()
    both = joined([read_signatures([]), read.take([2, 0]), read.take([1])])
    assert [photo.key for photo in both.photos] == ["key02", "key00", "key01"]
    assert (both.embeds[2] == read.embeds[1]).all() and both.embeds.dtype == np.float16
