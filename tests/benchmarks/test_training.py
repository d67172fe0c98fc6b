"""The training plane's benchmark, its whole way with few and small steps: that it measures what it names."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.training import main


@pytest.mark.timeout(900)  # a minute and a half, where nothing else is at work
def test_every_figure_is_measured_and_written_down(tmp_path: Path) -> None:
    few = ["--shards", "3", "--per-shard", "4", "--large", "6", "--steps", "20", "--batch-size", "2", "--rounds", "1"]
    main([*few, "--out", str(tmp_path), "--results", str(tmp_path)])
    numbers = json.loads((tmp_path / "training.json").read_text("utf-8"))
    ratios = ["loader_vs_webdataset", "loader_vs_raw", "two_worker_speedup", "machine_limit"]
    shards = ["resume_seconds", "resume_seconds_of_large_shards", "shard_mb", "large_shard_mb"]
    for name in [*ratios, *shards, "step_ms", "checkpoint_mb"]:
        assert numbers[name] > 0, name
    assert 0 <= numbers["data_wait"] < 1 and "checkpoint_stall" in numbers
    (page,) = tmp_path.glob("*-training.md")
    for name in (*ratios, "data_wait", "checkpoint_stall"):
        assert name in page.read_text("utf-8").replace(" ", "_")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((page.name, "training.json"))  # the rest is gone
