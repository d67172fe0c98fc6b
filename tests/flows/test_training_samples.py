"""Shards as tensors, the same on every worker."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.training_samples import StepBatches, TrainingSamples
from infra.errors import DamagedObject, UserError
from infra.settings import TrainSettings, load_settings
from infra.shard_cache import ShardCache
from infra.storage import DirectoryStore
from moa_model import draw
from preprocessing.catalog import ShardRow, store_shard
from preprocessing.shards import encode_instances, encode_json, encode_npy, sample_spans, write_tar
from preprocessing.text_encoding import TextStates


def _shard(store: DirectoryStore, name: str, people: list[int], without: str = "", pooled: int = 0) -> ShardRow:
    samples = []
    for number, count in enumerate(people):
        instances = np.zeros((16, 16), np.uint8)
        for subject in range(1, count + 1):
            instances[:8, 4 * subject : 4 * subject + 4] = subject
        stream = np.random.default_rng([number, count])
        subjects = [{"token": 5 + subject, "box": [0, 0, 8, 8]} for subject in range(count)]
        about = {"caption": "x" * number, "subjects": subjects, "size": [48, 32 + number], "crop": [8, 0, 40, 32]}
        parts = {
            "json": encode_json(about),
            "instances.png": encode_instances(instances),
            "moments.npy": encode_npy(stream.normal(size=(8, 4, 4)).astype(np.float16)),
            "text.npy": encode_npy(stream.normal(size=(6, 3)).astype(np.float16)),
            "image_embeds.npy": encode_npy(stream.normal(size=(count, 2, 5)).astype(np.float16)),
        }
        parts["jpg"] = encode_picture(number)
        left_out = {f"{without}.npy"}
        if pooled:
            parts["pooled.npy"] = encode_npy(stream.normal(size=pooled).astype(np.float16))
            left_out |= {"pooled.npy"} if without == "text" else set()
        samples.append((f"{name}{number}", {part: data for part, data in parts.items() if part not in left_out}))
    return store_shard(store, "shard", name, "f", write_tar(samples), len(people))


def encode_picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    return load_settings("demo", tmp_path_factory.mktemp("workspace"), {"train.batch_size": "7"}).train


def _samples(store: DirectoryStore, rows: list[ShardRow], train: TrainSettings, **more: Any) -> TrainingSamples:
    return TrainingSamples(ShardCache(store, Path("unused"), 1), rows, train, **more)


def _batches(samples: TrainingSamples, train: TrainSettings, pooled: int = 0, **place: int) -> StepBatches:
    null_pooled = np.full(pooled, 2, np.float16) if pooled else None
    return StepBatches(samples, train, np.zeros((6, 3), np.float16), 0.5, **place, null_pooled=null_pooled)


def test_the_order_does_not_depend_on_how_the_shards_are_listed(tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, name, people) for name, people in (("b", [1, 2]), ("a", [2]), ("c", [1, 1, 1]))]
    one, other = _samples(store, rows, train), _samples(store, rows[::-1], train)
    keys = [one[position].key for position in range(6)]
    assert sorted(keys) == ["a0", "b0", "b1", "c0", "c1", "c2"]
    assert keys == [other[position].key for position in range(6)]
    assert {one[position].tokens for position in range(6) if keys[position] in ("a0", "b1")} == {(5, 6)}


@pytest.mark.parametrize("pooled", [0, 4], ids=["sd", "sdxl"])
@pytest.mark.parametrize("workers", [2, 3, 7])
def test_workers_share_out_the_batch_of_one(workers: int, pooled: int, tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, name, people, pooled=pooled) for name, people in (("a", [1, 2, 1]), ("b", [1, 1]))]
    samples = _samples(store, rows, train)
    whole = _batches(samples, train, pooled)[3]
    shares = [_batches(samples, train, pooled, rank=rank, workers=workers)[3] for rank in range(workers)]
    assert [key for one in shares for key in one.keys] == list(whole.keys)
    for name in ("latents", "noise", "timesteps", "dropped", "text", *(("pooled", "time_ids") if pooled else ())):
        joined = torch.cat([getattr(one.batch, name) for one in shares])
        assert torch.equal(joined, getattr(whole.batch, name)), name


def test_a_batch_pads_subjects_and_takes_the_drawn_variant(tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    samples = _samples(store, [_shard(store, "a", [1, 2])], train)
    step = _batches(samples, train)[0]
    batch, row = step.batch, step.keys.index("a0")
    numbers = draw(train.seed, range(7), (4, 4, 4))
    assert batch.tokens[row].tolist() == [5, -1] and batch.tokens[step.keys.index("a1")].tolist() == [5, 6]
    assert batch.masks.shape == (7, 2, 4, 4) and batch.masks[row, 1].sum() == 0
    assert batch.masks[row, 0].tolist() == [[0.0, 1.0, 0.0, 0.0]] * 2 + [[0.0] * 4] * 2
    variant = int(numbers.variant[row] * 2)
    np.testing.assert_array_equal(batch.image_embeds[row, :1], samples[row].image_embeds[:, variant])
    mean, log_variance = torch.from_numpy(samples[row].moments).float().chunk(2)
    latents = 0.5 * (mean + torch.exp(0.5 * log_variance) * numbers.posterior[row])
    torch.testing.assert_close(batch.latents[row], latents)


def test_sdxls_rows_are_those_of_stable_diffusion_1_with_pooled_texts_and_true_sizes(
    tmp_path: Path, train: TrainSettings
) -> None:
    """The same samples in the same order, with the same noise; a row's sizes are those of its own photo."""
    store = DirectoryStore(tmp_path)
    plain, more = (_samples(store, [_shard(store, "a", [1, 2, 1, 1], pooled=pooled)], train) for pooled in (0, 4))
    one, other = _batches(plain, train)[5], _batches(more, train, 4)[5]
    assert one.keys == other.keys and torch.equal(one.batch.latents, other.batch.latents)
    assert one.batch.pooled is None and one.batch.added_conditions is None
    assert other.batch.null_pooled.tolist() == [2, 2, 2, 2]
    for key, sizes, pooled in zip(other.keys, other.batch.time_ids.tolist(), other.batch.pooled, strict=True):
        # Photos of 48 × 32 and some rows more, cut to 32 × 32 from column 8 on and resized to 16 × 16.
        assert sizes == [32 + int(key[1:]), 48, 0, 4, 16, 16]
        sample = next(more[position] for position in range(4) if more[position].key == key)
        np.testing.assert_array_equal(pooled, sample.pooled.astype(np.float32))


def test_damaged_shards_are_passed_over_without_moving_the_others(tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, name, [1, 1]) for name in "abc"]
    whole = [_samples(store, rows, train)[position].key for position in range(12)]
    store.delete(rows[1].object_key)
    left = [_samples(store, rows, train, damaged={"b"})[position].key for position in range(12)]
    assert [key for key in whole if key[0] == "b"] and not [key for key in left if key[0] == "b"]
    assert all(a == b for a, b in zip(whole, left, strict=True) if a[0] != "b")
    with pytest.raises(UserError, match=r"damaged_shards"):
        [_samples(store, rows, train)[position] for position in range(6)]


@pytest.mark.parametrize("remembered", [1_000_000, 0])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_shard_that_becomes_another_under_our_hands(
    in_place: bool, remembered: int, tmp_path: Path, train: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is fetched anew; an object of a directory is named, and read on once it is put back."""
    monkeypatch.setattr("flows.training_samples._INDEXED", remembered)
    store = DirectoryStore(tmp_path / "store")
    rows = [_shard(store, name, [1, 1]) for name in "ab"]
    cache = ShardCache(store if in_place else _Elsewhere(store), tmp_path / "cache", 10**6)
    samples = TrainingSamples(cache, rows, train)
    whole = [samples[position] for position in range(4)]
    path = cache.path(rows[0].object_key, rows[0].sha256)
    sound = path.read_bytes()
    first, _ = next(sample_spans(sound))[1]["moments.npy"]
    with path.open("r+b") as file:  # of the same file, which is open
        file.seek(first + 200)
        file.write(bytes([sound[first + 200] ^ 1]))
    if in_place:
        with pytest.raises(DamagedObject, match=f"{rows[0].object_key} is damaged") as caught:
            [samples[position] for position in range(4)]
        assert caught.value.key == rows[0].object_key
        store.put(rows[0].object_key, sound)
    for position in range(4):
        assert samples[position].key == whole[position].key
        np.testing.assert_array_equal(samples[position].moments, whole[position].moments)
    assert cache.path(rows[0].object_key, rows[0].sha256).read_bytes() == sound


def test_a_shard_whose_places_are_not_remembered_is_verified_again(
    tmp_path: Path, train: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its checksums would be those of whatever it has become while it was closed."""
    monkeypatch.setattr("flows.training_samples._INDEXED", 0)
    store = DirectoryStore(tmp_path / "store")
    rows = [_shard(store, name, [1]) for name in "abcdef"]
    narrow = train.model_copy(update={"shuffle_shards": 1})
    samples = TrainingSamples(ShardCache(store, tmp_path / "cache", 10**6), rows, narrow)
    whole = [samples[position].key for position in range(6)]
    closed = min(set(range(6)) - set(samples._open))
    path = Path(store.uri(rows[closed].object_key))
    damaged = bytearray(path.read_bytes())
    damaged[next(sample_spans(bytes(damaged)))[1]["moments.npy"][0] + 200] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedObject, match=f"{rows[closed].object_key} is damaged"):
        [samples[position] for position in range(6, 12)]
    assert len(set(whole)) == 6


class _Elsewhere:
    """An object store that is no directory."""

    def __init__(self, inner: DirectoryStore) -> None:
        self.get, self.uri = inner.get, inner.uri


def test_another_process_reads_the_same(tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    samples = _samples(store, [_shard(store, "a", [1, 2, 1])], train)
    batches = _batches(samples, train)
    here = batches[2]  # its shard is open
    there = pickle.loads(pickle.dumps(batches))[2]
    assert torch.equal(here.batch.latents, there.batch.latents) and here.keys == there.keys


def test_nothing_to_train_on_is_said(tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(UserError, match="nothing to train on"):
        _samples(store, [], train)
    with pytest.raises(UserError, match="nothing to train on"):
        _samples(store, [_shard(store, "a", [1])], train, damaged={"a"})


class _Models:
    """Stands for the encoders: what a column is computed from can be read off it."""

    settings = load_settings("demo").shard.model_copy(update={"reference_variants": 3, "reference_pixels": 8})

    def __init__(self, pooled: int = 0) -> None:
        self.pooled = pooled

    def text(self, captions: list[str]) -> TextStates:
        states = np.stack([np.full((6, 3), len(caption), np.float16) for caption in captions])
        pooled = np.stack([np.full(self.pooled, len(caption), np.float16) for caption in captions])
        return TextStates(states, pooled if self.pooled else None)

    def moments(self, pictures: list[Image.Image]) -> np.ndarray:
        return np.stack([np.full((8, 4, 4), np.asarray(picture)[0, 0, 0], np.float16) for picture in pictures])

    def image_embeds(self, crops: list[Image.Image]) -> np.ndarray:
        return np.stack([np.full(5, np.asarray(crop)[:, :, 0].mean(), np.float16) for crop in crops])


@pytest.mark.parametrize("column", ["moments", "image_embeds", "text"])
def test_a_missing_column_is_computed_or_named(column: str, tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, "a", [2] * 40, without=column)]
    sample = _samples(store, rows, train, models=_Models())[0]
    number = int(sample.key[1:])
    value = np.unique(getattr(sample, column)).tolist()
    if column != "image_embeds":
        assert value == {"text": [number], "moments": [pytest.approx(number, abs=3)]}[column]
    assert sample.image_embeds.shape == (2, 1 if column == "image_embeds" else 2, 5)
    with pytest.raises(UserError, match=f"shard.{column} to true"):
        _samples(store, rows, train)[0]


def test_crops_that_are_made_while_training_are_others_in_every_epoch(tmp_path: Path, train: TrainSettings) -> None:
    """A function of seed and position all the same: whoever asks, however often."""
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, "a", [1, 2, 1], without="image_embeds")]
    one, other = (_samples(store, rows, train, models=_Models()) for _ in range(2))
    seen: dict[str, list[bytes]] = {}
    for position in range(30):  # ten epochs
        sample = one[position]
        seen.setdefault(sample.key, []).append(sample.image_embeds.tobytes())
        np.testing.assert_array_equal(other[position].image_embeds, sample.image_embeds)
    different = [len(set(found)) for found in seen.values()]
    assert len(different) == 3 and min(different) > 3 and sum(different) < 30  # a third are the plain one
    batch = _batches(one, train)[0]
    np.testing.assert_array_equal(batch.batch.image_embeds[0, 0], one[0].image_embeds[0, 0])


def test_sdxls_missing_text_is_computed_with_its_pooled_text(tmp_path: Path, train: TrainSettings) -> None:
    store = DirectoryStore(tmp_path)
    rows = [_shard(store, "a", [1] * 9, without="text", pooled=4)]
    sample = _samples(store, rows, train, models=_Models(pooled=4))[0]
    assert sample.pooled.tolist() == [int(sample.key[1:])] * 4 and len(sample.time_ids) == 6
