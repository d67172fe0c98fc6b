"""A training by itself, in a process that can be killed: `python -m tests.faults.training_driver SETTINGS [dying of]`.

The workspace holds training shards of random numbers (`training_runs.py`); the rest is the production's own: plan, Ray
Train, checkpoints, end. Prints one line of JSON: the released adapter's digest, and the loss curve. No torch here, as
in production's driver.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from flows import train as stage
from flows.run import Run
from flows.session import prepare_environment
from infra.errors import UserError
from infra.ray_session import ray_session
from infra.settings import Settings
from infra.storage import DirectoryStore, Key, Pieces
from tests.faults.steps_taken import noting_work

REPOSITORY = Path(__file__).parents[2]


class DyingStore(DirectoryStore):
    """Whoever writes a file of a checkpoint dies of it once, in the middle ("put"), or whoever removes one dies just
    after, twice in all ("delete"); `deaths` has a file for each name that was had."""

    def __init__(self, root: Path, deaths: Path, of: str) -> None:
        super().__init__(root)
        self.deaths, self.of = deaths, of

    def put(self, key: Key, data: Pieces) -> None:
        if self._deadly("put", str(key)):
            assert isinstance(data, bytes)
            self._write_beside(self._path(str(key)), data[: len(data) // 2])
            self._die(str(key))
        super().put(key, data)

    def delete(self, key: Key) -> None:
        super().delete(key)
        if self._deadly("delete", str(key)):
            self._die(str(key))

    def _deadly(self, what: str, key: str) -> bool:
        had = {path.name for path in self.deaths.iterdir()}
        enough = what == "delete" and len(had) == 2  # the driver, which removes all at the end, is to live
        return what == self.of and not enough and "/checkpoints/step-" in key and Path(key).name not in had

    def _die(self, key: str) -> None:
        (self.deaths / Path(key).name).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train, and print what came out."""
    prepare_environment()
    run = Run(Settings.model_validate_json(Path(sys.argv[1]).read_bytes()))
    if sys.argv[2:]:
        deaths = run.settings.workspace / "deaths"
        deaths.mkdir(exist_ok=True)
        run.__dict__["store"] = DyingStore(Path(run.settings.store_root), deaths, sys.argv[2])
    stage.work = noting_work
    stage._MOST_FAILURES = int(os.environ.get("MOST_FAILURES", stage._MOST_FAILURES))
    with ray_session(run.settings.ray):
        print(json.dumps(train(run)))


def train(run: Run) -> dict[str, Any]:
    """To the end: {"run_id", "adapter": digest of what would be released, "curve", "damaged"}, or {"refused": why}.

    AssertionError where what is refused goes on in the background.
    """
    plan = stage.plan_training(run, from_scratch=True)
    plan |= {"damaged": stage.damaged_shards(run, plan)}
    try:
        stage.fit(run, plan)
        stage.finish(run, plan)
    except UserError as error:
        for thread in threading.enumerate():
            if thread.name == "background":
                thread.join(1.0)
                assert not thread.is_alive(), "Ray Train's thread would call a Ray that is being shut down"
        return {"refused": str(error)}
    return {"damaged": plan["damaged"], **outcome(run, plan["run_id"])}


def outcome(run: Run, run_id: str) -> dict[str, Any]:
    """What a finished training came to, for comparison with others."""
    files = stage.trained_adapter(run, run_id)
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    return {"run_id": run_id, "adapter": digest, "curve": stage.loss_curve(run, run_id)}


if __name__ == "__main__":
    main()
