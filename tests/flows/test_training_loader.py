"""Batches from a thread and from processes are the source's own, in order."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flows.training_loader import batches
from flows.training_samples import StepBatches, TrainingSamples
from infra.errors import DamagedObject
from infra.settings import TrainSettings, load_settings
from infra.shard_cache import ShardCache
from infra.storage import DirectoryStore
from tests.training_shards import write_shards


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> StepBatches:
    folder = tmp_path_factory.mktemp("shards")
    store = DirectoryStore(folder / "store")
    rows = write_shards(store, [5, 6, 3], latent=(4, 4, 4), text=(6, 3), features=5)
    train = load_settings("demo", folder / "workspace", {"train.shuffle_shards": "2"}).train
    return StepBatches(
        TrainingSamples(ShardCache(store, folder, 1), rows, train), train, np.zeros((6, 3), np.float16), 1
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_the_sources_own_from_any_step_on(workers: int, source: StepBatches) -> None:
    settings = source.settings.model_copy(update={"loader_workers": workers, "loader_ahead": 2})
    made = list(batches(source, range(4, 9), settings, pin=False))
    assert len(made) == 5
    for step, one in enumerate(made, start=4):
        assert one.keys == source[step].keys
        assert torch.equal(one.batch.latents, source[step].batch.latents)
        assert torch.equal(one.batch.noise, source[step].batch.noise)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_must_be_mended_comes_as_one_sentence(workers: int, source: StepBatches, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    rows = write_shards(store, [4], latent=(4, 4, 4), text=(6, 3), features=5)
    store.delete(rows[0].object_key)
    samples = TrainingSamples(ShardCache(store, tmp_path, 1), rows, source.settings)
    broken = StepBatches(samples, source.settings, source.null_text, 1.0)
    settings: TrainSettings = source.settings.model_copy(update={"loader_workers": workers})
    with pytest.raises(DamagedObject, match=r"^[^\n]* is gone, though the catalog names it: [^\n]*$") as caught:
        next(batches(broken, range(3), settings, pin=False))
    assert caught.value.key == rows[0].object_key
