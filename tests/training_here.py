"""A training's loop as Ray Train's local mode runs it, without Ray's processes: for tests of the loop, not of Ray.

`train_here`: one worker in this process. `train_by_processes`: several, each a process that torchrun starts with
`python -m tests.training_here SETTINGS`; they exchange gradients as Ray's workers do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.run import Run
from flows.train import damaged_shards, finish, plan_training
from infra.errors import UserError
from infra.settings import Settings
from tests.faults.training_driver import REPOSITORY, outcome
from tests.without_ray import fit


def train_here(run: Run) -> dict[str, Any]:
    """What `training_driver.train` brings; UserError where the training is refused."""
    plan = _train(run)
    finish(run, plan)
    return {"damaged": plan["damaged"], **outcome(run, plan["run_id"])}


def train_by_processes(settings: Settings) -> dict[str, Any]:
    """The same by `train.workers` processes, what is refused as {"refused": the sentence}."""
    (path := settings.workspace / "settings.json").write_text(settings.model_dump_json())
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings.train.workers}"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.training_here", str(path)],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _train(run: Run) -> dict[str, Any]:
    """All steps of this process's worker; the plan."""
    plan = plan_training(run, from_scratch=True)
    plan |= {"damaged": damaged_shards(run, plan)}
    fit(run, plan)
    return plan


def main() -> None:
    """One of several workers; the first one prints what came out."""
    run = Run(Settings.model_validate_json(Path(sys.argv[1]).read_bytes()))
    try:
        plan = _train(run)
        if os.environ["RANK"] != "0":
            return
        finish(run, plan)
        found = {"damaged": plan["damaged"], **outcome(run, plan["run_id"])}
    except UserError as error:
        found = {"refused": str(error)}
    if os.environ["RANK"] == "0":
        print(json.dumps(found))


if __name__ == "__main__":
    main()
