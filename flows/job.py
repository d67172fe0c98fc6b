"""`python -m flows.job`: a stage as the entry point of a Ray Job, on a machine of the cluster.

What is asked for lies in the store and is named by its key and digest; so does what came of it. Prefect is with whoever
waits, not here: what the stage shows goes to a board in the store.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.job_records import NO_REQUEST, Attempt, fingerprints, result_as_plain, sha256, write_outcome
from flows.run import Run, StageResult
from infra.code_version import code_digest, code_name
from infra.errors import UserError, UserNotice
from infra.settings import Settings
from infra.storage import ObjectStore, open_store

_REFUSED, _FAILED = 2, 1
_STAGES = ("ingest", "duplicates", "caption", "segment", "shard", "train", "evaluate")


def main() -> int:
    """Do what was asked for, and write down what came of it. The exit code is for Ray."""
    parser = argparse.ArgumentParser(prog="python -m flows.job", description=__doc__)
    for option in ("--store", "--name", "--sha256"):
        parser.add_argument(option, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--endpoint-url")
    asked = parser.parse_args()
    store, attempt = open_store(asked.store, asked.endpoint_url), Attempt(asked.name, asked.number)
    try:
        data = store.get(attempt.key("job.json"))
    except KeyError:
        data = b""
    if sha256(data) != asked.sha256:
        print(f"There is no {store.uri(attempt.key('job.json'))} with these contents on this machine.", flush=True)
        return NO_REQUEST
    warnings.showwarning = _say_notice
    code, came = _done(json.loads(data), store, attempt)
    _write(store, attempt, came)
    return code


def _done(request: dict[str, Any], store: ObjectStore, attempt: Attempt) -> tuple[int, dict[str, Any]]:
    from flows import artifacts
    from flows.job_page import StoreBoard
    from flows.session import prepare_environment
    from infra.ray_session import ray_session

    prepare_environment()
    board = StoreBoard(store, attempt.key("progress.json"))
    try:
        with board, artifacts.shown_on(board):
            settings = _settings(request)
            stage = _stage(request["stage"])
            with ray_session(settings.ray):
                result = stage(settings, **request["arguments"])
    except UserError as error:
        print(f"moa: {error}", flush=True)
        return _REFUSED, {"refused": str(error), "left": board.left}
    except Exception:
        traceback.print_exc()
        return _FAILED, {"failed": traceback.format_exc(), "left": board.left}
    return 0, {"result": result_as_plain(result), "left": board.left}


def _settings(request: dict[str, Any]) -> Settings:
    """The settings for this machine. Raises UserError where it has other code or other models than was asked for."""
    if request["code"] != code_digest():
        raise UserError(
            f"The cluster has {code_name()} and this machine has {request['code_name']}: install the same on both, or "
            "upload this one with --set ray.working_dir=FOLDER."
        )
    settings = Settings.model_validate(request["settings"])
    workspace = settings.workspace
    if not workspace.is_dir():  # it is the other machine's own
        if "paperfolk" in (settings.ingest.source, settings.evaluate.source):
            raise UserError(
                f"Paperfolk's photos lie in {workspace}, which the cluster does not see: choose a --workspace in a "
                "folder that all machines share, or another source."
            )
        workspace = Path(tempfile.gettempdir()) / "moa-workspace"
        workspace.mkdir(parents=True, exist_ok=True)
    here = settings.ray.model_copy(update={"address": "auto"})
    settings = settings.model_copy(update={"ray": here, "workspace": workspace})
    found = fingerprints(Run(settings), request["stage"])
    for stage, fingerprint in request["fingerprints"].items():
        if found.get(stage) != fingerprint:
            raise UserError(f"The cluster has other model files for {stage!r} than this machine: give it the same.")
    return settings


def _stage(name: str) -> Callable[..., StageResult]:
    """The body of a stage's flow; a training's is that of a plan."""
    import importlib

    if name not in _STAGES:
        raise ValueError(f"no stage {name!r}")
    if name == "train":
        from flows.train import train_planned

        return train_planned
    module = importlib.import_module(f"flows.{'near_duplicates' if name == 'duplicates' else name}")
    return getattr(module, name).fn


def _write(store: ObjectStore, attempt: Attempt, came: dict[str, Any]) -> None:
    """The outcome, though the store may be away for a minute: days of work may lie before it."""
    for pause in (1, 2, 4, 8, 16, 32, 0):
        try:
            return write_outcome(store, attempt, came)
        except Exception as error:
            if not pause:
                raise
            print(f"the outcome could not be written ({error}); trying again", flush=True)
            time.sleep(pause)


def _say_notice(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    notice = issubclass(category, UserNotice)
    print(f"moa: {message}" if notice else warnings.formatwarning(message, category, *where[:2]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
