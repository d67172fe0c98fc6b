"""A run that is killed with everything it started, and started again."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import workers
from flows.ingest import new_photos
from flows.run import Run
from infra.settings import Settings
from preprocessing.ingesting import chunk
from tests.tiny_world import tiny_changes, tiny_settings, write_world

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(900)  # two minutes on an idle machine
def test_killed_run_started_again_ends_in_the_same_catalog_and_a_release(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    settings, expected = tiny_settings(world, tmp_path / "killed"), tiny_settings(world, tmp_path / "expected")
    command = [sys.executable, "-m", "flows.cli", "retrain", "--workspace", str(settings.workspace)]
    command += [part for key, value in tiny_changes(world).items() for part in ("--set", f"{key}={value}")]

    run = Run(settings)
    _kill_when(lambda: bool(run.catalog.shards("caption")), command)
    attempts = Path(settings.store_root) / "runs"
    _kill_when(lambda: any(attempts.glob("*/attempts/*/step-00000004/complete.json")), command)
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)

    assert ended.returncode == 0, ended.stderr
    assert "continued after step" in ended.stderr
    assert run.catalog.content_digest() == _catalog_without_a_crash(expected)
    photos = Counter((row.source, row.origin) for row in run.catalog.photos("ingest"))
    assert len(photos) == 22 and set(photos.values()) == {1}
    production = run.releases.current("production")
    assert production is not None and production.number == 1
    assert len(run.releases.all()) == 1


def _kill_when(ready: Callable[[], bool], command: list[str]) -> None:
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 400
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _catalog_without_a_crash(settings: Settings) -> str:
    """The same stages in this process, one shard after another, without Ray: the digest of what they leave."""
    run, models = Run(settings), settings.models
    prints = run.fingerprints
    for index, records in enumerate(chunk(new_photos(settings), settings.ingest.photos_per_shard)):
        known = frozenset(run.catalog.known_digests())
        worker = workers.IngestWorker(run.store, settings.ingest, prints["ingest"], known)
        done = worker({"index": index, "records": records})
        run.catalog.commit([done["shard"]] if done["shard"] else [], done["photos"])
    captioner = workers.CaptionWorker(run.store, models.captioner, settings.caption, prints["caption"])
    segmenter = workers.SegmentWorker(run.store, models.segmenter, settings.segment, False, prints["segment"])
    chosen = (settings.shard, settings.binding, settings.filter)
    precomputer = workers.PrecomputeWorker(run.store, models, *chosen, prints, prints["shard"])
    for row in run.shards("ingest"):
        captions, segments = captioner({"row": row}), segmenter({"row": row})
        built = precomputer({"row": row, "caption": captions["shard"], "segment": segments["shard"], "columns": {}})
        for done in (captions, segments, built):
            run.catalog.commit([done["shard"], *done.get("more", [])], done["photos"])
    return run.catalog.content_digest()
