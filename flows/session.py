"""The machinery around a command: Prefect and Ray for as long as it runs, both quiet."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from infra.errors import UserError
from infra.prefect_server import embedded_prefect
from infra.ray_jobs import is_dashboard
from infra.ray_session import ray_session
from infra.settings import Settings

# One thread per process: two single-threaded workers are faster on two cores than two that fight over them.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# Ray gives its workers a low priority (15); beside anything else on the machine they would hardly move.
_PRIORITY = {"RAY_worker_niceness": "0"}
# A training's workers wait at their end until they are next looked after: 2 s by default.
_ATTENTION = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
# Nothing is downloaded that the settings do not name, and no progress bars but ours.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
# Errors reach the user as one sentence or as Python's own traceback; Prefect would print them a second time.
_NO_CONSOLE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}

_DYING_SECONDS = 10.0  # that a killed run may need to give its memory back, and only then its lock


class WorkspaceBusy(UserError):
    """Another run is at work in the workspace."""


@contextmanager
def machinery(settings: Settings, ray: bool = True, wait_seconds: float | None = None) -> Iterator[None]:
    """A Prefect API and a Ray session for the block; no Ray where it is False, or where jobs are sent to a cluster.

    wait_seconds: for another run that is at work in the workspace, a few by default; WorkspaceBusy after that. What a
    killed run left behind is not in the way: both have ports of their own, and Ray a new folder.
    """
    prepare_environment()
    with ExitStack() as stack:
        stack.enter_context(alone_in(settings.workspace, wait_seconds))
        if ray := ray and not is_dashboard(settings.ray.address):  # jobs are asked for there, by whoever needs one
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="moa-", ignore_cleanup_errors=True))
            os.environ["RAY_TMPDIR"] = folder  # short: Ray's sockets have paths of at most 107 characters
            stack.callback(os.environ.pop, "RAY_TMPDIR", None)
        stack.enter_context(embedded_prefect(settings.workspace / "prefect"))
        if ray:
            stack.enter_context(ray_session(settings.ray))
        from prefect.exceptions import CancelledRun

        try:
            yield
        except CancelledRun as error:
            raise UserError(f"{error}.") from error


@contextmanager
def alone_in(workspace: Path, wait_seconds: float | None = None) -> Iterator[None]:
    """Raise WorkspaceBusy where another run is at work in the workspace: each would sweep away what the other writes.

    The lock is the process's own: its children do not hold it, and however it ends, the lock ends with it.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    with open(workspace / "lock", "w", encoding="utf-8") as file:
        ends = time.monotonic() + (_DYING_SECONDS if wait_seconds is None else wait_seconds)
        while not _locked(file):
            if time.monotonic() > ends:
                raise WorkspaceBusy(
                    f"Another run is at work in {workspace}: wait for it, or choose another --workspace."
                )
            time.sleep(0.1)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def prepare_environment() -> None:
    """Set what Prefect, Ray and their workers read from the environment, where the user has not."""
    for name, value in (environment_of_runs() | _NO_CONSOLE).items():
        os.environ.setdefault(name, value)


def environment_of_runs() -> dict[str, str]:
    """What holds for Ray's processes as well, which may be started before a run's."""
    return _ONE_THREAD | _PRIORITY | _ATTENTION | _QUIET
