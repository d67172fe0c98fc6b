"""Shards as tensors, the same on every worker."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.training_samples import TrainingSamples
from infra.errors import UserError
from infra.storage import DirectoryStore
from moa_model import draw
from preprocessing.catalog import ShardRow, store_shard
from preprocessing.shards import encode_instances, encode_json, encode_npy, write_tar


def _shard(store: DirectoryStore, name: str, people: list[int], without: str = "") -> ShardRow:
    samples = []
    for number, count in enumerate(people):
        instances = np.zeros((16, 16), np.uint8)
        for subject in range(1, count + 1):
            instances[:8, 4 * subject : 4 * subject + 4] = subject
        stream = np.random.default_rng([number, count])
        subjects = [{"token": 5 + subject} for subject in range(count)]
        parts = {
            "json": encode_json({"caption": "x" * number, "subjects": subjects}),
            "instances.png": encode_instances(instances),
            "moments.npy": encode_npy(stream.normal(size=(8, 4, 4)).astype(np.float16)),
            "text.npy": encode_npy(stream.normal(size=(6, 3)).astype(np.float16)),
            "image_embeds.npy": encode_npy(stream.normal(size=(count, 2, 5)).astype(np.float16)),
        }
        samples.append((f"{name}{number}", {part: data for part, data in parts.items() if part != f"{without}.npy"}))
    return store_shard(store, "shard", name, "f", write_tar(samples), len(people))


def test_order_is_that_of_the_shards_names(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, name, people) for name, people in (("b", [1, 2]), ("a", [2]))]
    one, other = TrainingSamples(store, rows), TrainingSamples(store, rows[::-1])
    assert len(one) == 3
    assert [sample.tokens for sample in one.samples] == [(5, 6), (5,), (5, 6)]
    for a, b in zip(one.samples, other.samples, strict=True):
        np.testing.assert_array_equal(a.moments, b.moments)
    assert one.latent_shape == (4, 4, 4) and one.image_dim == 5


def test_batch_pads_subjects_and_takes_the_drawn_variant(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    samples = TrainingSamples(store, [_shard(store, "a", [1, 2])])
    numbers = draw(0, 0, 2, samples.latent_shape)
    batch = samples.batch([0, 1], numbers, torch.zeros(6, 3), scaling=0.5, shift=0.0)
    assert batch.tokens.tolist() == [[5, -1], [5, 6]]
    assert batch.masks.shape == (2, 2, 4, 4) and batch.masks[0, 1].sum() == 0
    assert batch.masks[0, 0].tolist() == [[0.0, 1.0, 0.0, 0.0]] * 2 + [[0.0] * 4] * 2
    variant = int(numbers.variant[1] * 2)
    expected = samples.samples[1].image_embeds[:, variant].astype(np.float32)
    np.testing.assert_array_equal(batch.image_embeds[1], expected)
    mean, log_variance = torch.from_numpy(samples.samples[0].moments).float().chunk(2)
    latents = 0.5 * (mean + torch.exp(0.5 * log_variance) * numbers.posterior[0])
    torch.testing.assert_close(batch.latents[0], latents)


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        TrainingSamples(DirectoryStore(tmp_path), [])


def _encode(captions: Sequence[str]) -> np.ndarray:
    """The length of each caption as its text states."""
    return np.stack([np.full((6, 3), len(caption), np.float16) for caption in captions])


def test_text_states_that_are_not_there_are_computed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, "a", [1] * 70, without="text"), _shard(store, "b", [1, 1])]
    samples = TrainingSamples(store, rows, _encode).samples
    assert [int(sample.text[0, 0]) for sample in samples[:70]] == sorted(range(70), key=str)
    kept = TrainingSamples(store, rows[1:]).samples
    np.testing.assert_array_equal(samples[71].text, kept[1].text)


@pytest.mark.parametrize("column", ["moments", "image_embeds", "text"])
def test_a_missing_column_is_named(column: str, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    encode = None if column == "text" else _encode
    with pytest.raises(UserError, match=f"shard.{column} to true"):
        TrainingSamples(store, [_shard(store, "a", [1], without=column)], encode)
