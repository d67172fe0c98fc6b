"""The machinery around a command: Prefect and Ray for as long as it runs, both quiet."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from infra.prefect_server import embedded_prefect
from infra.ray_session import ray_session
from infra.settings import Settings

# One thread per process: two single-threaded workers are faster on two cores than two that fight over them.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# Ray gives its workers a low priority (15); beside anything else on the machine they would hardly move.
_PRIORITY = {"RAY_worker_niceness": "0"}
# Nothing is downloaded that the settings do not name, and no progress bars but ours.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Errors reach the user as one sentence or as Python's own traceback; Prefect would print them a second time.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


@contextmanager
def machinery(settings: Settings, ray: bool = True) -> Iterator[None]:
    """A Prefect API and, unless `ray` is False, a Ray session for the block.

    What a killed run left behind is not in the way: both have ports of their own, and Ray a new folder.
    """
    prepare_environment()
    with ExitStack() as stack:
        if ray:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="moa-", ignore_cleanup_errors=True))
            os.environ["RAY_TMPDIR"] = folder  # short: Ray's sockets have paths of at most 107 characters
            stack.callback(os.environ.pop, "RAY_TMPDIR", None)
        stack.enter_context(embedded_prefect(settings.workspace / "prefect"))
        if ray:
            stack.enter_context(ray_session(settings.ray))
        yield


def prepare_environment() -> None:
    """Set what Prefect, Ray and their workers read from the environment, where the user has not."""
    for name, value in (_ONE_THREAD | _PRIORITY | _QUIET).items():
        os.environ.setdefault(name, value)
