"""What the driver and the training's workers agree on: the job, and what a complete checkpoint is.

A checkpoint is a folder of safetensors and JSON with a list of its files' digests. Only a folder that agrees with its
list counts, so one that a kill cut short is passed over. (No torch and no Prefect here: the reporter's process
need not load them.)
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import ObjectStore
from preprocessing.catalog import ShardRow

HISTORY = "history.json"  # the loss curve, and the losses before and after on the same samples and noise
RELEASED = "released"
_LIST = "complete.json"


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker is told. `start`: an adapter's files to start from, None = a fresh adapter."""

    settings: Settings
    store: ObjectStore
    run_id: str
    shards: list[ShardRow]
    start: dict[str, bytes] | None


class ProgressReporter:
    """An actor that rank 0 tells how far it is, any rank what the user must mend, and that the driver asks."""

    def __init__(self) -> None:
        self.step, self.loss, self.refusal = 0, 0.0, ""

    def tell(self, step: int, loss: float) -> None:
        self.step, self.loss = step, loss

    def refuse(self, refusal: str) -> None:
        self.refusal = refusal

    def ask(self) -> tuple[int, float, str]:
        return self.step, self.loss, self.refusal


def work(config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker. What the user must mend is told to the reporter: Ray would wrap it up."""
    import ray

    from flows.training_loop import train_worker

    try:
        train_worker(config)
    except UserError as error:
        ray.get(config["reporter"].refuse.remote(str(error)))
        raise


def list_files(folder: Path) -> None:
    """Write the list that makes the folder a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / _LIST).write_text(json.dumps(listed), "utf-8")


def fetch_checkpoint(store: ObjectStore, run_id: str, folder: Path) -> int:
    """Copy the run's latest complete checkpoint into an empty folder and return its step; 0 where there is none."""
    keys = store.list(f"runs/{run_id}/attempts/")
    found = {match[1]: int(match[2]) for key in keys if (match := re.match(r"(.+/step-(\d{8}))/", key))}
    for prefix in sorted(found, key=lambda prefix: (found[prefix], prefix), reverse=True):
        contents = _complete(store, prefix)
        if contents is None:
            continue
        for name, data in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return found[prefix]
    return 0


def _complete(store: ObjectStore, prefix: str) -> dict[str, bytes] | None:
    try:
        listed = json.loads(store.get(f"{prefix}/{_LIST}"))
        contents = {name: store.get(f"{prefix}/{name}") for name in listed}
    except (KeyError, ValueError):
        return None
    intact = all(hashlib.sha256(contents[name]).hexdigest() == sha256 for name, sha256 in listed.items())
    return contents if intact else None
