"""A stage as a job on a Ray cluster: submitted once, found again by whoever wants the same, stopped with its flow.

Only questions travel: the stage runs on the cluster, whoever waits may be killed, and its connection may be lost. What
the job says appears here as if it ran here.
"""

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal

from flows import artifacts, job_records
from flows.cancellation import Cancellation, FlowCancelled
from flows.job_page import Mirror, show_left
from flows.job_records import NO_REQUEST, Attempt
from flows.run import Run, StageResult
from infra.errors import UserError
from infra.ray_jobs import Away, JobServer, JobState, is_dashboard
from infra.settings import Settings

_PAUSE_SECONDS = (0.5, 5.0)  # between two questions: at first, and later on
_AWAY_PAUSE_SECONDS = 30.0  # at most, while nobody answers
_FIRST_PATIENCE_SECONDS = 20.0  # where nobody has answered yet, an address that is wrong is likelier
_PATIENCE_SECONDS = 30 * 60.0
_LOG_SHARE = 20  # the log comes as a whole each time: fetching it may take a twentieth of the time
_AFTER_A_LOSS_SECONDS = [5, 30, 120]
_NOT_UPLOADED = [".git", ".venv", "runs", "tests"]  # as in .gitignore, which counts too


class JobLost(UserError):
    """The job was killed, or its cluster was, by nothing that it did: worth another attempt."""


def runs_on_cluster(settings: Settings) -> bool:
    """Whether `ray.address` is a dashboard: stages then run behind it, not in this process."""
    return is_dashboard(settings.ray.address)


def run_on_cluster(run: Run, stage: str, decides: Any, arguments: Mapping[str, Any]) -> StageResult:
    """The stage as a job, from wherever it is to its end. `decides`: all on which its result depends beside the store.

    Raises what the stage raises, and UserError where the job was stopped or cannot be run there.
    """
    name = job_records.job_name(run.settings, stage, decides)
    came = _follow(run.settings, name, stage, dict(arguments))
    show_left(came["left"])
    if "refused" in came:
        raise UserError(came["refused"])
    if "failed" in came:
        raise RuntimeError(f"the job failed on the cluster:\n{came['failed']}")
    return StageResult(**came["result"])


def _was_lost(_: Any, __: Any, state: Any) -> bool:
    """Whether Prefect is to try again. It writes down why, but not in the terminal."""
    error = state.result(raise_on_failure=False)
    if lost := isinstance(error, JobLost):
        artifacts.console.print(f"{error} It is tried again.", markup=False, style="yellow", soft_wrap=True)
    return lost


@task(
    name="ray job",
    task_run_name="{name}",
    retries=len(_AFTER_A_LOSS_SECONDS),
    retry_delay_seconds=_AFTER_A_LOSS_SECONDS,
    retry_condition_fn=_was_lost,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def _follow(settings: Settings, name: str, stage: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Wait for the job of this name, which is submitted if there is none; what it came to."""
    return ClusterJob(settings, name, stage, arguments).follow()


class ClusterJob:
    """The job of a name, as whoever waits for it sees it."""

    def __init__(self, settings: Settings, name: str, stage: str, arguments: Mapping[str, Any]) -> None:
        run = Run(settings)
        self.settings, self.store, self.name, self.stage = settings, run.store, name, stage
        self.server = JobServer(settings.ray.address)
        self._request = job_records.request_for(run, stage, arguments)
        self._runtime_env = runtime_env(settings)
        self._cancellation = Cancellation()
        self.attempt: Attempt | None = None  # the one that is waited for
        self.asked_for: Attempt | None = None  # the same, or one of which it is not known yet whether it came
        self._patience = _PATIENCE_SECONDS if self.server.address in _have_answered else _FIRST_PATIENCE_SECONDS
        self._status, self._away_since, self._noted = "", 0.0, False
        self._printed, self._log_due = 0, 0.0

    def follow(self) -> dict[str, Any]:
        """To its end, however often the way to it is lost."""
        pause, longest = _PAUSE_SECONDS
        with Mirror() as mirror, _waiting_for(self):
            try:
                while (came := self._look(mirror)) is None:
                    if self._cancellation.asked():
                        self._give_up()
                    pause = min(pause * 1.5, _AWAY_PAUSE_SECONDS if self._away_since else longest)
                    time.sleep(pause)
            except TerminationSignal:  # so Prefect's runner cancels; another end of this process leaves the job alone
                if self._cancellation.asked(now=True):
                    self._give_up()
                raise
        return came

    def stop(self) -> None:
        """Ask the cluster to end the job. Raises Away."""
        if self.asked_for is not None:
            self.server.stop(self.asked_for.job_id)

    def _look(self, mirror: Mirror) -> dict[str, Any] | None:
        """One round of questions: what the job came to; None while it goes on, as far as is known."""
        state: JobState | None = None
        try:
            state = self._state() if self.attempt is not None else self._find()
            self._answered(state)
        except Away as error:
            self._is_away(self.server.address, error)
        if self.attempt is None:
            return None
        try:
            if not self._noted:
                self._cancellation.note(self.store, self.attempt)
                self._noted = True
            parts = job_records.progress(self.store, self.attempt)
            # Also while the cluster does not answer: it may be gone because the job is done.
            came = job_records.outcome(self.store, self.attempt) if state is None or state.ended else None
        except Exception as error:  # whatever keeps a store from being read
            self._is_away(self.settings.store_root, error)
            return None
        mirror.show(parts)
        if came is not None and "lost" not in came:
            return came
        if state is not None and state.ended:
            job_records.write_outcome(self.store, self.attempt, {"lost": state.status})
            raise self._ended_badly(self.attempt, state)
        return None

    def _state(self) -> JobState:
        assert self.attempt is not None
        state = self.server.state(self.attempt.job_id)
        if state is None:
            raise JobLost(
                f"The cluster at {self.server.address} was started anew and does not know the job "
                f"{self.attempt.job_id} any more: the same command submits it again."
            )
        return state

    def _find(self) -> JobState:
        """Take the last attempt, if it has not ended, or begin another one."""
        attempt = job_records.latest(self.store, self.name)
        if attempt is not None and job_records.outcome(self.store, attempt) is None:
            self._patience = _PATIENCE_SECONDS
            state = self.server.state(attempt.job_id)
            if state is not None and not state.ended:
                self.attempt = self.asked_for = attempt
                artifacts.note(f"{self.stage}: found the job {attempt.job_id} on {self.server.address}")
                return state
            if state is None and self.store.get(attempt.key("job.json")) == self._request:
                return self._submit(attempt)  # it never reached the cluster, or the cluster is another one
        self.server.connect()  # nothing is asked for where nobody answers
        attempt = Attempt(self.name, attempt.number + 1 if attempt is not None else 1)
        if not self.store.create(attempt.key("job.json"), self._request):
            return self._find()  # somebody else was quicker
        return self._submit(attempt)

    def _submit(self, attempt: Attempt) -> JobState:
        words = ["python", "-m", "flows.job", "--store", job_records.store_address(self.settings)]
        words += [
            "--name",
            attempt.name,
            "--number",
            str(attempt.number),
            "--sha256",
            job_records.sha256(self._request),
        ]
        if self.settings.storage.endpoint_url:
            words += ["--endpoint-url", self.settings.storage.endpoint_url]
        self.asked_for = attempt
        self.server.submit(attempt.job_id, shlex.join(words), self._runtime_env)
        self.attempt, self._patience = attempt, _PATIENCE_SECONDS
        artifacts.note(f"{self.stage}: submitted as the job {attempt.job_id} to {self.server.address}")
        return self._state()

    def _answered(self, state: JobState) -> None:
        assert self.attempt is not None
        _have_answered.add(self.server.address)
        if self._away_since:
            artifacts.note(f"{self.stage}: {self.server.address} answers again")
            self._away_since = 0.0
        with suppress(Away):  # the log alone is no reason to give up
            self._say_log(self.attempt, state)
        if state.status != self._status:
            self._status = state.status
            artifacts.note(f"{self.stage}: the job {self.attempt.job_id} is {state.status.lower()}")

    def _is_away(self, who: str, error: Exception) -> None:
        """Nobody answered: say so once, and give up when it has lasted too long."""
        now = time.monotonic()
        if not self._away_since:
            self._away_since = now
            goes_on = f"; the job {self.attempt.job_id} goes on without" if self.attempt is not None else ""
            artifacts.note(f"{self.stage}: {who} does not answer ({error}){goes_on}; trying again")
        if now - self._away_since > self._patience:
            known = self.attempt is not None or self._patience == _PATIENCE_SECONDS
            mend = "the same command goes on where it was" if known else "start it or mend ray.address"
            raise UserError(f"{who} has not answered for {self._patience / 60:.1g} minutes: {mend}.") from error

    def _say_log(self, attempt: Attempt, state: JobState) -> None:
        """The lines that the job has printed since the last time."""
        began = time.monotonic()
        if began < self._log_due and not state.ended:
            return
        text = self.server.log(attempt.job_id)
        end = len(text) if state.ended else text.rfind("\n") + 1
        for line in text[self._printed : end].splitlines():
            if line.strip():
                artifacts.note(f"  {line}")
        self._printed = max(self._printed, end)
        now = time.monotonic()
        self._log_due = now + max(_PAUSE_SECONDS[1], _LOG_SHARE * (now - began))

    def _ended_badly(self, attempt: Attempt, state: JobState) -> Exception:
        """Why a job ended that wrote down nothing."""
        job, address = attempt.job_id, self.server.address
        if state.status == "STOPPED":
            return UserError(f"The job {job} was stopped on {address}: the same command goes on where it was.")
        if state.exit_code == NO_REQUEST:
            return UserError(
                f"The cluster at {address} does not see {self.settings.store_root}: storage.root must be an object "
                "store or a folder that all machines share."
            )
        if "No module named" in state.message and "flows" in state.message:
            return UserError(
                f"The cluster at {address} does not have this project: its image must hold it (pip install), or "
                "upload this copy with --set ray.working_dir=FOLDER."
            )
        said = state.message.strip().splitlines()[-1:] or ["nothing is said"]
        if state.killed:
            return JobLost(f"The job {job} was killed on {address} ({said[0][:300]}): the same command goes on.")
        return RuntimeError(f"the job {job} ended as {state.status} and wrote down nothing: {state.message}")

    def _give_up(self) -> None:
        """Its flow was cancelled, and so is the job. Raises FlowCancelled, whether the cluster could be told or not."""
        name = self.asked_for.job_id if self.asked_for is not None else self.name
        try:
            self.stop()
        except Away:
            said = f"cancelled; {self.server.address} does not answer, so the job {name} goes on"
            raise FlowCancelled(said) from None
        raise FlowCancelled(f"cancelled, and with it the job {name}; the same command continues where it was")


def runtime_env(settings: Settings) -> dict[str, Any]:
    """What the job gets beside the cluster's own environment. Raises UserError for what is not there."""
    missing = [name for name in settings.ray.environment if name not in os.environ]
    if missing:
        raise UserError(f"ray.environment names {missing[0]}, which is not set here: set it, or take it out.")
    found: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in settings.ray.environment}}
    if settings.ray.working_dir:
        folder = Path(settings.ray.working_dir).expanduser().absolute()
        if not (folder / "flows" / "job.py").is_file():
            raise UserError(f"ray.working_dir {folder} holds no copy of this project: name the folder above flows.")
        found |= {"working_dir": str(folder), "excludes": _NOT_UPLOADED}
    return found


_waited_for = dict[int, ClusterJob]()
_have_answered = set[str]()  # dashboards, to this process: between two stages of a run they may be started anew


@contextmanager
def _waiting_for(job: ClusterJob) -> Iterator[None]:
    _waited_for[id(job)] = job
    try:
        yield
    finally:
        del _waited_for[id(job)]


def begin_to_stop() -> Callable[[float], str]:
    """For Ctrl-C: ask for the end of all jobs that this process waits for, whatever its other threads are at.

    The returned function waits so many seconds for that and says what came of it, "" where there are no jobs.
    """
    jobs = [job for job in list(_waited_for.values()) if job.asked_for is not None]
    stopped = list[ClusterJob]()

    def ask(job: ClusterJob) -> None:
        with suppress(Away, UserError):
            job.stop()
            stopped.append(job)

    threads = [threading.Thread(target=ask, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()

    def said(seconds: float) -> str:
        ends = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        told, untold = _names(stopped), _names([job for job in jobs if job not in stopped])
        lines = [f"moa: {told} was stopped on the cluster too."] if told else []
        lines += [f"moa: the cluster does not answer, and {untold} may go on: ray job stop."] if untold else []
        return "\n".join(lines)

    return said


def _names(jobs: Sequence[ClusterJob]) -> str:
    return ", ".join(job.asked_for.job_id for job in jobs if job.asked_for is not None)
