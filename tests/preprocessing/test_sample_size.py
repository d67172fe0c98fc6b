"""The bytes that are foretold, against those that are written."""

import numpy as np

from infra.settings import load_settings
from preprocessing.sample_size import sample_bytes
from preprocessing.shards import _BLOCK, encode_npy, tar_pieces, write_tar

SETTINGS = load_settings("demo").shard
MOMENTS, TEXT, WIDTH = (8, 6, 6), (7, 16), 12


def test_files_and_tar_are_as_written() -> None:
    found = sample_bytes(SETTINGS, 48, MOMENTS, TEXT, WIDTH, subjects=2)
    shapes = {"moments": MOMENTS, "text": TEXT, "image_embeds": (2, SETTINGS.reference_variants, WIDTH)}
    parts = {f"{name}.npy": encode_npy(np.zeros(shape, np.float16)) for name, shape in shapes.items()}
    assert {name: len(part) for name, part in parts.items()} == {name: found[name] for name in parts}
    whole = parts | {name: bytes(found[name]) for name in ("jpg", "json", "instances.png")}
    tail = len(tar_pieces([("key", whole)])[-1])
    assert sum(found.values()) == len(write_tar([("key", whole)])) - tail
    assert tail >= 2 * _BLOCK


def test_a_column_that_is_left_out_costs_nothing() -> None:
    less = sample_bytes(SETTINGS.model_copy(update={"text": False}), 48, MOMENTS, TEXT, WIDTH)
    all_of_them = sample_bytes(SETTINGS, 48, MOMENTS, TEXT, WIDTH)
    assert all_of_them.keys() - less.keys() == {"text.npy"} and less["tar"] < all_of_them["tar"]


def test_sdxls_pooled_text_comes_and_goes_with_the_text() -> None:
    plain, more = (sample_bytes(SETTINGS, 48, MOMENTS, TEXT, WIDTH, pooled=pooled) for pooled in (0, 10))
    assert more.keys() - plain.keys() == {"pooled.npy"} and more["tar"] > plain["tar"]
    assert more["pooled.npy"] == len(encode_npy(np.zeros(10, np.float16)))
    without = sample_bytes(SETTINGS.model_copy(update={"text": False}), 48, MOMENTS, TEXT, WIDTH, pooled=10)
    assert not {"text.npy", "pooled.npy"} & without.keys()


def test_the_paper_presets_columns_are_184_kilobytes() -> None:
    found = sample_bytes(load_settings("sd15").shard, 512, (8, 64, 64), (77, 768), 768)
    assert found["moments.npy"] - 128 == 65_536 and found["text.npy"] - 128 == 118_272
    assert found["image_embeds.npy"] - 128 == 6 * 768 * 2
