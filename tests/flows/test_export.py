"""`moa export`: the catalog's training samples in another format, through the real store and catalog."""

from pathlib import Path

import numpy as np
import pytest

from flows.export import export_fastcomposer
from flows.run import Run
from infra.errors import UserError
from infra.settings import Settings, load_settings
from preprocessing.catalog import store_shard
from tests.preprocessing.test_exporting import CAPTIONS, sample, shards


def _settings(tmp_path: Path) -> Settings:
    return load_settings("demo", tmp_path / "workspace")


def test_what_the_catalog_holds_is_exported_and_a_repeat_is_free(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    run = Run(settings)
    for row, tar in shards(3, 2).values():
        done = store_shard(run.store, "shard", row.shard, run.fingerprints["shard"], tar, row.samples)
        run.catalog.commit([done])
    other = store_shard(run.store, "shard", "0" * 16, "other settings", shards(1)[f"{9:016x}"][1], 1)
    run.catalog.commit([other])
    assert export_fastcomposer(settings, tmp_path / "out").samples == 5
    ids = (tmp_path / "out/image_ids.txt").read_text().split()
    captions = [(tmp_path / "out" / one[:5] / f"{one}.json").read_text() for one in ids]
    assert len(ids) == 5 and sum(CAPTIONS[0].split(" ")[1] in text for text in captions) >= 1
    assert np.load(tmp_path / "out/00000/00000000.npy").max() >= 1 and sample(0)[0] == "0000"
    assert export_fastcomposer(settings, tmp_path / "out").finished


def test_nothing_to_export_and_nowhere_to_write_are_one_sentence(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with pytest.raises(UserError, match="no training samples"):
        export_fastcomposer(settings, tmp_path / "out")
    run = Run(settings)
    ((row, tar),) = shards(1).values()
    run.catalog.commit([store_shard(run.store, "shard", row.shard, run.fingerprints["shard"], tar, 1)])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        export_fastcomposer(settings, tmp_path / "file" / "below")
