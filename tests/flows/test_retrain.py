"""What a retraining does before its stages; the stages one after another are the journey's."""

import json
import time
from pathlib import Path

import pytest

from flows import retrain as retraining
from flows.job_records import Attempt, write_outcome
from flows.run import Run
from infra.settings import Settings
from tests.tiny_world import tiny_settings, write_models

LITTER = "shards/ingest/uploaded-and-not-committed"


class Reached(Exception):
    pass


def test_litter_is_left_alone_while_a_job_may_be_about_to_commit_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(settings: Settings) -> None:
        raise Reached

    monkeypatch.setattr(retraining, "ingest", reached)
    write_models(tmp_path / "models")
    settings = tiny_settings(tmp_path, tmp_path / "w")
    run, attempt = Run(settings), Attempt("moa-ingest-0", 1)
    run.store.put(LITTER, b"x")
    run.store.put(attempt.key("progress.json"), json.dumps({"time": time.time(), "parts": []}).encode())
    with pytest.raises(Reached):
        retraining.retrain.fn(settings)
    assert run.store.exists(LITTER)
    write_outcome(run.store, attempt, {"result": {}, "left": []})
    with pytest.raises(Reached):
        retraining.retrain.fn(settings)
    assert not run.store.exists(LITTER)
