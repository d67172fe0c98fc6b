"""A training by itself, in a process that can be killed: `python -m tests.faults.training_driver SETTINGS.json`.

The workspace holds training shards of random numbers (`prepare`); the rest is the production's own: plan, Ray Train,
checkpoints, end. Prints one line of JSON: the released adapter's digest, and the loss curve.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.run import Run
from flows.session import prepare_environment
from flows.train import damaged_shards, finish, fit, loss_curve, plan_training, trained_adapter
from infra.errors import UserError
from infra.ray_session import ray_session
from infra.settings import Settings
from infra.storage import DirectoryStore, Key, Pieces
from tests.sdxl_models import FIRST, POOLED_DIM, SECOND, write_sdxl_base
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS, tiny_clip, tiny_pipeline
from tests.tiny_world import tiny_settings
from tests.training_shards import write_shards

REPOSITORY = Path(__file__).parents[2]


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
            [5, 3, 6],
            latent=(4, 8, 8),
            text=(77, FIRST + SECOND) if sdxl else (TOKENS, TEXT_DIM),
            features=IMAGE_DIM,
            pooled=POOLED_DIM if sdxl else 0,
            fingerprint=run.fingerprints["shard"],
            no_number=no_number,
        )
        run.catalog.commit(rows)
    return settings


class DyingStore(DirectoryStore):
    """Whoever writes a file of a checkpoint dies of it once: a note of each name in `deaths` says that it was had."""

    def __init__(self, root: Path, deaths: Path) -> None:
        super().__init__(root)
        self.deaths = deaths

    def put(self, key: Key, data: Pieces) -> None:
        name = str(key).rpartition("/")[2]
        if "/checkpoints/step-" in str(key) and not (self.deaths / name).exists():
            (self.deaths / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().put(key, data)


def start(settings: Settings, *, dying: bool = False) -> "subprocess.Popen[str]":
    """The training as a process with a group of its own; what it logs lies in its workspace. dying: `DyingStore`."""
    folder = settings.workspace
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(settings.model_dump_json())
    with (folder / "driver.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.training_driver", str(folder / "settings.json"), str(int(dying))],
            stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip


def result_of(driver: "subprocess.Popen[str]", settings: Settings) -> dict[str, Any]:
    """What a training that goes to its end prints; AssertionError with the driver's log where it fails."""
    printed, _ = driver.communicate()
    assert printed, (settings.workspace / "driver.log").read_text()[-3000:]
    return dict(json.loads(printed.splitlines()[-1]))


def main() -> None:
    """Train, and print what came out."""
    prepare_environment()
    run = Run(Settings.model_validate_json(Path(sys.argv[1]).read_bytes()))
    if int(sys.argv[2]):
        deaths = run.settings.workspace / "deaths"
        deaths.mkdir(exist_ok=True)
        run.__dict__["store"] = DyingStore(Path(run.settings.store_root), deaths)
    with ray_session(run.settings.ray):
        print(json.dumps(train(run)))


def train(run: Run) -> dict[str, Any]:
    """To the end: {"adapter": digest of what would be released, "curve", "damaged"}, or {"refused": the sentence}."""
    plan = plan_training(run, from_scratch=True)
    plan |= {"damaged": damaged_shards(run, plan)}
    try:
        fit(run, plan)
    except UserError as error:
        return {"refused": str(error)}
    finish(run, plan)
    files = trained_adapter(run, plan["run_id"])
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    return {"adapter": digest, "curve": loss_curve(run, plan["run_id"]), "damaged": plan["damaged"]}


if __name__ == "__main__":
    main()
