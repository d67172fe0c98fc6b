"""Shards as tensors, the same on every worker."""

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


def _shard(store: DirectoryStore, name: str, people: list[int]) -> ShardRow:
    samples = []
    for number, count in enumerate(people):
        instances = np.zeros((16, 16), np.uint8)
        for subject in range(1, count + 1):
            instances[:8, 4 * subject : 4 * subject + 4] = subject
        stream = np.random.default_rng([number, count])
        samples.append(
            (
                f"{name}{number}",
                {
                    "json": encode_json({"subjects": [{"token": 5 + subject} for subject in range(count)]}),
                    "instances.png": encode_instances(instances),
                    "moments.npy": encode_npy(stream.normal(size=(8, 4, 4)).astype(np.float16)),
                    "text.npy": encode_npy(stream.normal(size=(6, 3)).astype(np.float16)),
                    "image_embeds.npy": encode_npy(stream.normal(size=(count, 2, 5)).astype(np.float16)),
                },
            )
        )
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
