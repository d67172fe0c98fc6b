"""Photos over their time: forgotten and deleted by the sweep, and nothing else is."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import ingest as ingest_stage
from flows import retention
from flows.cli import app
from flows.ingest import ingest, new_photos
from flows.job_records import Attempt
from flows.retention import find_too_old, let_go
from flows.run import Run
from infra.access_log import accesses
from infra.settings import Settings
from preprocessing.catalog import FORGET, KEPT
from preprocessing.forgetting import find_older
from tests.tiny_world import tiny_changes, tiny_settings, write_models, write_people
from tests.without_ray import map_shards


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    return root


@pytest.fixture
def settings(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Six photos that came, and later four more. The clock by which they are old stands still afterwards."""
    monkeypatch.setattr(ingest_stage, "map_shards", map_shards)
    write_people(tmp_path / "celeba", people=3, photos_each=2)
    settings = tiny_settings(world, tmp_path / "w", {"ingest.source": f"celeba:{tmp_path / 'celeba'}"})
    ingest.fn(settings)
    _wait_past(Run(settings))
    write_people(tmp_path / "celeba", people=5, photos_each=2)
    ingest.fn(settings)
    now = time.time()
    monkeypatch.setattr(retention, "time", SimpleNamespace(time=lambda: now))
    return settings


def _wait_past(run: Run) -> None:
    """Until the clock of the catalog, in milliseconds, has gone on."""
    while time.time() * 1000 <= run.catalog.history()[0]["timestamp"] + 20:
        time.sleep(0.02)


def _kept_for(settings: Settings, days: float) -> Settings:
    return settings.model_copy(update={"service": settings.service.model_copy(update={"photo_days": days})})


def _between(settings: Settings) -> float:
    """The age in days of a moment between the two ingestions."""
    first = min(entry["timestamp"] for entry in Run(settings).catalog.history())
    return (retention.time.time() - first / 1000 - 0.01) / 86_400


def _kept(run: Run) -> set[str]:
    return {row.key for row in run.catalog.photos("ingest") if row.status == KEPT}


def test_those_over_their_time_go_with_what_held_them(settings: Settings) -> None:
    run = Run(settings)
    before, shards = _kept(run), run.catalog.shards("ingest")
    limited = _kept_for(settings, _between(settings))
    found = find_too_old(limited)
    old = found.photos.keys
    assert len(old) == 6 and old < before and len(before) == 10
    assert find_too_old(limited).photos == found.photos and _kept(run) == before  # looking changes nothing
    gone = let_go(limited, found)
    assert _kept(Run(settings)) == before - old
    lost = {row.object_key for row in shards} - {row.object_key for row in Run(settings).catalog.shards("ingest")}
    assert lost and lost <= set(gone.objects) and not lost & set(run.store.list("shards/"))
    assert {row.detail for row in run.catalog.photos(FORGET)} == {f"kept for {limited.service.photo_days:g} days"}
    assert new_photos(settings) == []  # the source still has them
    assert find_too_old(limited).says == ""
    assert [one.what for one in accesses(run.store, 1)] == ["retention"]


def test_without_a_limit_all_stay(settings: Settings) -> None:
    assert settings.service.photo_days == 0
    found = find_too_old(settings)
    before = _kept(Run(settings))
    assert found.says == "" and let_go(settings, found) == found and _kept(Run(settings)) == before


def test_a_job_at_work_is_not_worked_against(settings: Settings) -> None:
    run = Run(settings)
    told = {"time": time.time(), "parts": []}
    run.store.put(Attempt("moa-caption-0", 1).key("progress.json"), json.dumps(told).encode())
    limited = _kept_for(settings, 1e-9)
    found = find_too_old(limited)
    assert "wait until no job is at work" in found.says
    let_go(limited, found)
    assert len(_kept(run)) == 10


def test_nothing_is_older_than_the_first_version(settings: Settings) -> None:
    assert find_older(Run(settings).catalog, 0.0).photos == []


def test_the_command_says_what_goes(settings: Settings, world: Path) -> None:
    changes = {**tiny_changes(world), "service.photo_days": str(_between(settings))}
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]

    def sweep(*more: str) -> Any:
        done = CliRunner().invoke(app, ["sweep", "--json", *more, "--workspace", str(settings.workspace), *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    there = sweep("--dry-run")["too_old"]
    assert len(there["photos"]) == 6 and len(_kept(Run(settings))) == 10
    gone = sweep()["too_old"]
    assert gone["photos"] == there["photos"] and gone["objects"] and len(_kept(Run(settings))) == 4
