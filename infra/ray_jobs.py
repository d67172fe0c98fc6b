"""Ray's Jobs API, as far as it is needed here: submit under an id, ask, read the log, stop.

It is HTTP to the cluster's dashboard, so a lost connection loses nothing: the job goes on, and whoever knows its id
asks again. Every call may be repeated.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import UserError

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_SECONDS = (10.0, 60.0)  # to connect, and between two bytes of an answer; Ray's own client would wait for ever
_STATUS = re.compile(r"status code (\d{3})")
# No doing of the job's own: its machine was lost, or its memory ran out.
_KILLED = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "JOB_SUPERVISOR_ACTOR_START_FAILURE")
_SIGNALLED = 128  # Ray gives a process that a signal ended a code below 0, the shell in between one above this


class Away(Exception):
    """Nobody answers at the moment: a lost connection, a dashboard that starts."""


@dataclass(frozen=True)
class JobState:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, and what Ray says about it. `killed`: failed by no doing of its
    own."""

    status: str
    message: str = ""
    exit_code: int | None = None
    killed: bool = False

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def is_dashboard(address: str) -> bool:
    """Whether `ray.address` names a dashboard that takes jobs; otherwise a cluster that this machine is part of."""
    return address.startswith(("http://", "https://"))


class JobServer:
    """The dashboard of a Ray cluster. Its calls raise `Away`, and UserError where it does not let this machine in."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._client: Any = None

    def connect(self) -> None:
        """Find out that it answers."""
        self._client = None
        self._call("get_address")

    def submit(self, job_id: str, entry_point: str, runtime_env: Mapping[str, Any]) -> None:
        """Start a job. Where there is one of this id, as by a submission whose answer was lost, nothing is done."""
        try:
            self._call("submit_job", submission_id=job_id, entrypoint=entry_point, runtime_env=dict(runtime_env))
        except _Answered as error:
            if self.state(job_id) is not None:
                return
            last = next(line for line in reversed(error.text.splitlines()) if line.strip(". "))
            if error.code >= 500 and "Traceback" not in error.text:  # a proxy's, or no agent is ready yet
                raise Away(last) from error
            raise UserError(
                f"The Ray cluster at {self.address} does not take the job: {last[:300].rstrip('.')}."
            ) from error

    def state(self, job_id: str) -> JobState | None:
        """None where the cluster does not know it: it never came, or the cluster is another one by now."""
        try:
            info = self._call("get_job_info", job_id)
        except _Answered as error:
            if error.code == 404:
                return None
            raise Away(str(error)) from error
        code = info.driver_exit_code
        signalled = code is not None and (code < 0 or code > _SIGNALLED)
        killed = info.status == "FAILED" and (info.error_type in _KILLED or signalled)
        return JobState(str(info.status), info.message or "", code, killed)

    def log(self, job_id: str) -> str:
        """All that the job has printed."""
        try:
            return str(self._call("get_job_logs", job_id))
        except _Answered as error:
            raise Away(str(error)) from error

    def stop(self, job_id: str) -> None:
        """Ask for its end: first politely, three seconds later not. Nothing happens where it has ended or never was."""
        try:
            self._call("stop_job", job_id)
        except _Answered as error:
            if error.code != 404:
                raise Away(str(error)) from error

    def _call(self, method: str, *arguments: Any, **more: Any) -> Any:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            self._client = self._client or _connected(self.address)
            return getattr(self._client, method)(*arguments, **more)
        except AuthenticationError as error:
            raise UserError(
                f"The Ray cluster at {self.address!r} does not let this machine in: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN as on its head node (ray get-auth-token), or mend ray.address."
            ) from error
        except (requests.RequestException, ConnectionError) as error:
            raise Away(str(error)) from error
        except RuntimeError as error:
            found = _STATUS.search(str(error)) or _STATUS.search("status code 500")
            assert found is not None
            raise _Answered(int(found[1]), str(error)) from error


class _Answered(Exception):
    """Somebody answered, with an HTTP code that is no success."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"HTTP {code}")
        self.code, self.text = code, text


def _connected(address: str) -> Any:
    """Ray's client; it asks for the cluster's version at once."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray's classes are untyped
        def _do_request(self, *arguments: Any, **more: Any) -> Any:
            return super()._do_request(*arguments, timeout=_SECONDS, **more)

    # Otherwise RAY_ADDRESS, which other programs set, would be asked instead of what the settings name.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    return Client(address)
