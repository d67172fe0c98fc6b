"""Who wants the same finds the same job, and what works in a store is known to all."""

import json
import time
from pathlib import Path

from flows import job_records
from flows.job_records import Attempt
from infra.settings import load_settings
from infra.storage import DirectoryStore


def test_a_name_is_what_decides_the_result(tmp_path: Path) -> None:
    here = load_settings("demo", tmp_path)
    more_workers = load_settings("demo", tmp_path, {"caption.workers": "7", "ray.address": "http://x:1"})
    elsewhere = load_settings("demo", tmp_path / "other")
    name = job_records.job_name(here, "caption", "fingerprint")
    assert name == job_records.job_name(more_workers, "caption", "fingerprint")
    others = [("segment", "fingerprint", here), ("caption", "other", here), ("caption", "fingerprint", elsewhere)]
    assert name not in {job_records.job_name(where, stage, decides) for stage, decides, where in others}
    assert Attempt(name, 12).job_id == f"{name}-0012" and Attempt(name, 12).folder == f"jobs/{name}/0012"


def test_attempts_are_counted_and_keep_their_first_outcome(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    assert job_records.latest(store, "a") is None
    for number in (1, 2, 10):
        assert store.create(Attempt("a", number).key("job.json"), b"{}")
    store.create(Attempt("ab", 11).key("job.json"), b"{}")
    last = job_records.latest(store, "a")
    assert last == Attempt("a", 10) and job_records.outcome(store, last) is None
    job_records.write_outcome(store, last, {"result": 1})
    job_records.write_outcome(store, last, {"lost": "FAILED"})
    assert job_records.outcome(store, last) == {"result": 1}


def test_what_lives_and_has_not_ended_is_at_work(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for name, seconds in (("lives", 5.0), ("silent", 3600.0), ("ended", 5.0)):
        told = {"time": time.time() - seconds, "parts": []}
        store.put(Attempt(name, 1).key("progress.json"), json.dumps(told).encode())
    job_records.write_outcome(store, Attempt("ended", 1), {"result": {}})
    assert job_records.at_work(store) == [Attempt("lives", 1)]
    store.put(Attempt("lives", 1).key("waiting/run-a"), b"{}")
    store.put(Attempt("silent", 3).key("waiting/run-b"), b"{}")
    assert job_records.waited_for_by(store, "run-b") == [Attempt("silent", 3)]
