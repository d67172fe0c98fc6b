"""Trainings in processes of their own, for tests that disturb them: started, watched, killed, and judged at the end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil

from flows.checkpoints import latest_step
from flows.run import Run
from flows.train import plan_training
from infra.settings import Settings
from preprocessing.catalog import load_shard
from preprocessing.shards import read_tar
from tests.faults.steps_taken import Taken, check_epochs, steps_taken
from tests.faults.training_driver import REPOSITORY
from tests.sdxl_models import FIRST, POOLED_DIM, SECOND, write_sdxl_base
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS, tiny_clip, tiny_pipeline
from tests.tiny_world import tiny_settings
from tests.training_shards import write_shards

SHARDS = (5, 3, 6)  # samples in each: no epoch ends with a batch
STEPS = 24
CHANGES = {
    "train.steps": str(STEPS),
    "train.batch_size": "6",
    "train.checkpoint_every": "4",
    "train.workers": "2",
    "train.keep_last": "2",
    "train.warmup_steps": "0",
    "ray.num_cpus": "3",
    "ray.object_store_mb": "80",
}
_PATIENCE = 240.0  # seconds that a step may take to come, on a machine that is busy with other things
_LOOK = 0.02


def prepare(root: Path, name: str, changes: Mapping[str, str], no_number: str = "", sdxl: bool = False) -> Settings:
    """Models (made once) and a workspace of that name with shards under `root`, and the settings to train with."""
    if not (root / "models").exists():
        if sdxl:
            write_sdxl_base(root / "models" / "base")
        else:
            tiny_pipeline(folder=root / "models" / "base")
        tiny_clip(folder=root / "models" / "clip")
        for model in ("captioner", "segmenter", "identity"):  # no stage before training is run
            (root / "models" / model).mkdir()
            (root / "models" / model / "config.json").write_text("{}")
    settings = tiny_settings(root, root / name, changes)
    run = Run(settings)
    if not run.training_shards():
        rows = write_shards(
            run.store,
            SHARDS,
            latent=(4, 8, 8),
            text=(77, FIRST + SECOND) if sdxl else (TOKENS, TEXT_DIM),
            features=IMAGE_DIM,
            pooled=POOLED_DIM if sdxl else 0,
            fingerprint=run.fingerprints["shard"],
            no_number=no_number,
        )
        run.catalog.commit(rows)
    return settings


class Training:
    """A training that runs in processes of its own, and can be started again where it was killed.

    As a context manager: at the end nothing of it is left running.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.run = settings, Run(settings)
        settings.workspace.mkdir(exist_ok=True)
        self.run_id = str(plan_training(self.run, from_scratch=True)["run_id"])
        self.driver: subprocess.Popen[str] | None = None
        self._killed, self._temporary = set[int](), Path()

    def __enter__(self) -> "Training":
        self._temporary = Path(tempfile.mkdtemp(prefix="moa-"))  # short: Ray's sockets lie in it
        return self

    def __exit__(self, *_: object) -> None:
        if self.driver is not None:
            self.kill_driver()
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def log(self) -> str:
        """What the driver printed for people."""
        return (self.settings.workspace / "driver.log").read_text("utf-8")

    @property
    def said(self) -> str:
        """The same on one line, whatever the width for which it was broken."""
        return " ".join(self.log.split())

    def start(
        self, *, dying: Literal["", "put", "delete"] = "", environment: Mapping[str, str] | None = None
    ) -> "Training":
        """The driver as a process with a group of its own. dying: with a `DyingStore`, of what."""
        folder = self.settings.workspace
        (folder / "settings.json").write_text(self.settings.model_dump_json())
        command = [sys.executable, "-m", "tests.faults.training_driver", str(folder / "settings.json")]
        own = {"PYTHONPATH": str(REPOSITORY), "RAY_TMPDIR": str(self._temporary), **(environment or {})}
        with (folder / "driver.log").open("a") as log:
            self.driver = subprocess.Popen(
                command + [dying] * bool(dying), stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY,
                start_new_session=True, env=os.environ | own,
            )  # fmt: skip
        return self

    def taken(self) -> list[Taken]:
        """What the workers have taken so far."""
        return steps_taken(self.settings.workspace)

    def until(self, ready: Callable[[], Any], what: str) -> Any:
        """Wait for a true value and return it; AssertionError where the driver ends before, or it takes too long."""
        assert self.driver is not None
        ends = time.monotonic() + _PATIENCE
        while not (found := ready()):
            assert self.driver.poll() is None, f"the training ended before {what}: {self.log[-3000:]}"
            assert time.monotonic() < ends, f"not yet {what}: {self.log[-3000:]}"
            time.sleep(_LOOK)
        return found

    def workers_at(self, step: int) -> dict[int, Taken]:
        """Wait until all workers that are alive have begun this step (from 0 on) or a later one; by rank."""

        def there() -> dict[int, Taken] | None:
            at = {one.rank: one for one in self.taken() if one.pid not in self._killed and _lives(one.pid)}
            everyone = at and len(at) == next(iter(at.values())).workers
            return at if everyone and all(one.step >= step for one in at.values()) else None

        found: dict[int, Taken] = self.until(there, f"step {step + 1}")
        return found

    def until_saved(self, step: int) -> None:
        """Wait for a checkpoint of this many steps or of more."""
        self.until(lambda: latest_step(self.run.store, self.run_id) >= step, f"the checkpoint of step {step}")

    def kill_worker(self, worker: Taken) -> None:
        """SIGKILL; AssertionError where it was gone already."""
        self._killed.add(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    def kill_driver(self) -> None:
        """SIGKILL to the driver and all that it started, which on a machine of its own would die with it."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        while family := [process for process in psutil.process_iter() if self._is_ours(process)]:
            for process in family:
                self._killed.add(process.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=30)

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether it, or whoever started it, was started with this training's environment."""
        try:
            return process.environ().get("RAY_TMPDIR") == str(self._temporary)
        except psutil.Error:
            return False

    def printed(self) -> dict[str, Any]:
        """What the driver prints at its end; AssertionError with its log where it fails."""
        assert self.driver is not None
        said, _ = self.driver.communicate()
        assert said and self.driver.returncode == 0, self.log[-5000:]
        return dict(json.loads(said.splitlines()[-1]))

    def result(self) -> dict[str, Any]:
        """The same of a training that went to its end, each of whose epochs had every sample exactly once."""
        printed = self.printed()
        assert "refused" not in printed, printed["refused"]
        self.check_epochs()
        return printed

    def check_epochs(self) -> None:
        """AssertionError unless each epoch had every sample exactly once."""
        train = self.settings.train
        check_epochs(self.taken(), train.steps, train.batch_size, self.keys())

    def keys(self) -> list[str]:
        """Of all samples of all shards."""
        tars = [load_shard(self.run.store, row) for row in self.run.training_shards()]
        return [sample.key for tar in tars for sample in read_tar(tar)]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
