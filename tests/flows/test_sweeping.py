"""What a sweep takes, and what it leaves."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from flows.run import Run
from flows.sweeping import find_litter, take_away
from infra.settings import Settings, load_settings
from infra.storage import PARTIAL
from tests.tiny_world import tiny_changes, write_models


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    return load_settings("demo", root / "w", {**tiny_changes(root), "service.checkpoint_days": "14"})


def _training(run: Run, run_id: str, days: float) -> str:
    """A training of which nothing was heard for so long; the folder of its checkpoint."""
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    begun = {"time": at, "user": "u", "host": "h", "continued": 0, "workspace": "/w"}
    run.store.put(f"runs/{run_id}/history/0001-begun.json", json.dumps(begun).encode())
    folder = f"runs/{run_id}/checkpoints/step-00000002"
    for name in ("complete.json", "state.safetensors"):
        run.store.put(f"{folder}/{name}", b"12")
    return folder


def test_only_what_nobody_needs_goes(settings: Settings) -> None:
    run = Run(settings)
    old, new = _training(run, "old", 15), _training(run, "new", 13)
    run.store.put("runs/odd/checkpoints/step-00000001/complete.json", b"1")  # of unknown age
    run.store.put("shards/ingest/uploaded-and-not-committed.tar", b"123")
    half = settings.workspace / "store" / "models-evaluated" / "prior" / "x" / "drawn" / f"{PARTIAL}0123"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"1")  # no object yet, and none that a key names
    found = find_litter(settings)
    assert found.shards == {"shards/ingest/uploaded-and-not-committed.tar": 3}
    assert sorted(found.checkpoints) == [f"{old}/complete.json", f"{old}/state.safetensors"]
    assert "1 shards of killed runs, 2 objects of abandoned checkpoints" in found.says
    assert find_litter(settings) == found  # looking changes nothing
    assert half.exists()
    take_away(settings, found)
    assert not half.exists()
    left = run.store.list("runs/") + run.store.list("shards/")
    assert not [key for key in left if key.startswith(old) or key.startswith("shards/")]
    assert [key for key in left if key.startswith(new)] and "runs/odd/checkpoints/step-00000001/complete.json" in left
    assert "runs/old/history/0001-begun.json" in left
