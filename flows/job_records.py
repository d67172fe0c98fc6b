"""What whoever submits a job and the job itself leave for one another in the store, under `jobs/NAME/0001/`.

    job.json        what is asked for: stage, arguments, settings, code
    progress.json   what can be seen of it at the moment (`flows/job_page.py`)
    outcome.json    what it came to, once it has ended by itself
    waiting/ID      a Prefect flow run that waits for it, and that stops it if it is cancelled

NAME is a digest of all that decides the result: who wants the same finds the same job. A number counts attempts, for
Ray takes no id twice.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.run import Run, StageResult, digest
from infra.code_version import code_digest, code_name
from infra.settings import Settings
from infra.storage import ObjectStore

ROOT = "jobs/"
NO_REQUEST = 78  # EX_CONFIG: the job's exit code where its store does not hold what was asked for
_ALIVE_SECONDS = 15 * 60.0  # a job tells at least once a minute that it lives; clocks differ, stores are away


@dataclass(frozen=True)
class Attempt:
    """One submission: the id under which Ray knows it, and where its records lie in the store."""

    name: str
    number: int

    @property
    def job_id(self) -> str:
        return f"{self.name}-{self.number:04d}"

    @property
    def folder(self) -> str:
        return f"{ROOT}{self.name}/{self.number:04d}"

    def key(self, record: str) -> str:
        return f"{self.folder}/{record}"


def job_name(settings: Settings, stage: str, decides: Any) -> str:
    """The job's name: of the stage, the store that it works on, and `decides`, all else on which its result depends."""
    return f"moa-{stage}-{digest(stage, store_address(settings), settings.storage.endpoint_url, decides)}"


def store_address(settings: Settings) -> str:
    """The store's root as another machine, or another user's process, finds it."""
    root = settings.store_root
    return root if "://" in root else str(Path(root).expanduser().absolute())


def request_for(run: Run, stage: str, arguments: Mapping[str, Any]) -> bytes:
    """job.json. The settings hold no secrets: a store's credentials are the environment's."""
    settings = run.settings
    storage = settings.storage.model_copy(update={"root": store_address(settings)})
    request = {
        "stage": stage,
        "arguments": dict(arguments),
        "settings": settings.model_copy(update={"storage": storage}).model_dump(mode="json"),
        "code": code_digest(),
        "code_name": code_name(),
        "fingerprints": fingerprints(run, stage),
    }
    return json.dumps(request, sort_keys=True).encode()


def fingerprints(run: Run, stage: str) -> dict[str, str]:
    """What the stage's models and settings come to on this machine; on another one with other files, to something else.

    Beside the stages' own: of a training all of the base, of an evaluation what it draws and measures with.
    """
    more = {"train": lambda: run.inputs_digest([]), "evaluate": lambda: run.evaluation_fingerprint("")}
    return {**run.fingerprints, **({stage: more[stage]()} if stage in more else {})}


def latest(store: ObjectStore, name: str) -> Attempt | None:
    """The last attempt that was asked for."""
    keys = [key for key in store.list(f"{ROOT}{name}/") if key.endswith("/job.json")]
    return Attempt(name, max(int(key.split("/")[2]) for key in keys)) if keys else None


def outcome(store: ObjectStore, attempt: Attempt) -> dict[str, Any] | None:
    """{"result" | "refused" | "failed", "left": artifacts}, or {"lost": Ray's word}; None where none is known."""
    return _read(store, attempt.key("outcome.json"))


def write_outcome(store: ObjectStore, attempt: Attempt, came: Mapping[str, Any]) -> None:
    """Write down how it ended; what was written first stays."""
    store.create(attempt.key("outcome.json"), json.dumps(came, default=str).encode())


def progress(store: ObjectStore, attempt: Attempt) -> list[dict[str, Any]]:
    """The parts of the job's page as they are now."""
    found = _read(store, attempt.key("progress.json"))
    return list(found["parts"]) if found else []


def waited_for_by(store: ObjectStore, flow_run: str) -> list[Attempt]:
    """The attempts for which a Prefect flow run waited."""
    found = [key.split("/") for key in store.list(ROOT) if key.endswith(f"/waiting/{flow_run}")]
    return [Attempt(parts[1], int(parts[2])) for parts in found]


def at_work(store: ObjectStore) -> list[Attempt]:
    """Jobs that may be writing into the store, whoever submitted them: they have not ended, and told so lately."""
    keys = set(store.list(ROOT))
    found = []
    for key in sorted(keys):
        *_, name, number, record = key.split("/")
        attempt = Attempt(name, int(number)) if record == "progress.json" else None
        if attempt is None or attempt.key("outcome.json") in keys:
            continue
        told = _read(store, key)
        if told is not None and time.time() - told["time"] < _ALIVE_SECONDS:
            found.append(attempt)
    return found


def result_as_plain(result: StageResult) -> dict[str, Any]:
    return asdict(result)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(store: ObjectStore, key: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(store.get(key)))
    except KeyError:
        return None
