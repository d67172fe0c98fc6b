"""The flows as Prefect deploys them: each takes what fits a form, opens Ray, and ends with a sentence.

A command takes the same as options. What is wrong is no traceback but the run's state: "Refused" where a batch or the
gate's question to people ends it, "Failed" with one sentence for a user's mistake.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from prefect import flow
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled, Completed, Failed, State

from flows.cancellation import FlowCancelled, stop_jobs
from flows.options import read_settings
from flows.prefect_patience import patient_clients
from infra.errors import UserError
from infra.settings import Settings

_FORM = """
    Args:
        preset: Which settings: "demo", "sd15", "sdxl", or the path of a .toml file as the worker sees it.
        source: Where photos come from, as KIND:PATH or KIND:s3://bucket/prefix; empty = the preset's.
        storage_root: Where shards, catalog and releases live: a folder or s3://bucket/prefix; empty = the preset's.
        workspace: A folder on the worker's machine for caches and reports; empty = the preset's.
        changes: Single settings that differ from the preset, each as KEY=VALUE, for example train.steps=500."""
_FROM_SCRATCH = """
        from_scratch: Start with a fresh adapter, not with a released one."""


def settings_of(parameters: dict[str, Any]) -> Settings:
    """What a deployed run's parameters come to. Raises UserError."""
    changes = list(parameters.get("changes") or [])
    if root := parameters.get("storage_root"):
        changes.append(f"storage.root={root}")
    workspace = parameters.get("workspace")
    return read_settings(parameters["preset"], workspace or None, changes, parameters.get("source") or None)


@contextmanager
def _at_work(settings: Settings, patient: bool = False) -> Iterator[None]:
    """Alone in the workspace, with Ray; Prefect is there already. patient: another run's end is waited for."""
    from flows.run import check_inputs
    from flows.session import machinery
    from flows.world import prepare_world

    check_inputs(settings)
    with machinery(settings, wait_seconds=inf if patient else None):
        prepare_world(settings)
        yield


def _deployed(name: str, says: str, more: str = "", by_the_clock: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A flow whose docstring is its form, and whose mistakes are its state."""

    def decorated(body: Callable[..., Any]) -> Any:
        from functools import wraps

        @wraps(body)
        def run(*arguments: Any, **named: Any) -> Any:
            from flows.batch_check import BatchRefused
            from flows.session import WorkspaceBusy

            try:
                with patient_clients():
                    return Completed(message=body(*arguments, **named))
            except WorkspaceBusy as error:
                # What comes by the clock comes again; a stage was asked for by somebody, who should know.
                return Completed(message=f"Put off: {error}") if by_the_clock else Failed(message=str(error))
            except (FlowCancelled, CancelledRun) as error:
                return Cancelled(message=str(error))
            except BatchRefused as error:
                return Failed(name="Refused", message=str(error))
            except UserError as error:
                return Failed(message=str(error))

        run.__doc__ = f"{says}\n{_FORM}{more}"
        return flow(name=name, on_cancellation=[stop_jobs])(run)

    return decorated


@_deployed(
    "retrain",
    "All stages on the source's photos; ends early where nothing is new.",
    _FROM_SCRATCH
    + """
        accept_refusals: Train although unusually many of the new photos were refused: somebody looked at why.""",
)
def retrain(
    preset: str = "demo",
    source: str = "",
    storage_root: str = "",
    workspace: str = "",
    changes: list[str] = [],  # noqa: B006  # Prefect's form shows it, and nobody changes it
    from_scratch: bool = False,
    accept_refusals: bool = False,
) -> str:
    from flows.demo import conclude
    from flows.retrain import retrain

    settings = settings_of(locals())
    started = time.monotonic()
    with _at_work(settings, patient=True):  # nobody would start it again before the next night
        # Its body: the stages are then parts of this run, not of one within it.
        journey = retrain.fn(settings, from_scratch, judge=not accept_refusals)
        if isinstance(journey, State):
            raise CancelledRun(journey.message)
        conclude(settings, journey, time.monotonic() - started)
    if journey.nothing_new:
        return f"Nothing new: release {journey.release} was made of exactly these photos and settings."
    return f"Release {journey.release}: {'promoted' if journey.promoted else 'kept, the gate refused it'}."


def _form(
    name: str, says: str, work: Callable[[Settings, bool], str], from_scratch: bool = False, by_the_clock: bool = False
) -> Any:
    """A flow whose form has the settings, and with `from_scratch` that as well; work(settings, from_scratch)."""
    if from_scratch:

        def with_start(
            preset: str = "demo",
            source: str = "",
            storage_root: str = "",
            workspace: str = "",
            changes: list[str] = [],  # noqa: B006
            from_scratch: bool = False,
        ) -> str:
            return work(settings_of(locals()), from_scratch)

        return _deployed(name, says, _FROM_SCRATCH, by_the_clock)(with_start)

    def plain(
        preset: str = "demo",
        source: str = "",
        storage_root: str = "",
        workspace: str = "",
        changes: list[str] = [],  # noqa: B006
    ) -> str:
        return work(settings_of(locals()), False)

    return _deployed(name, says, by_the_clock=by_the_clock)(plain)


def _stage(name: str, says: str, module: str = "", adapter: bool = False) -> Any:
    """A stage alone."""

    def work(settings: Settings, from_scratch: bool) -> str:
        from importlib import import_module

        stage = getattr(import_module(f"flows.{module or name}"), name)
        with _at_work(settings):
            return str(stage(settings, **({"from_scratch": from_scratch} if adapter else {})).note)

    return _form(f"{name}-alone", says, work, from_scratch=adapter)


ingest = _stage("ingest", "Stage 1: read, check and crop new photos.")
duplicates = _stage("duplicates", "Stage 1b: find photos that repeat another one.", "near_duplicates")
caption = _stage("caption", "Stage 2: a sentence for every photo.")
segment = _stage("segment", "Stage 3: the people in every photo.")
shard = _stage("shard", "Stage 4: words bound to people, features precomputed.")
train = _stage("train", "Stage 5: train MoA, or go on where a training was.", adapter=True)
evaluate = _stage("evaluate", "Stage 6: draw people never seen in training, and measure.", adapter=True)
publish = _stage("publish", "Stage 7: a release, and production if the gate says so.", adapter=True)


def _evaluate_production(settings: Settings, _: bool) -> str:
    from flows.evaluate import evaluate
    from flows.run import Run

    current = Run(settings).releases.current(settings.publish.alias)
    if current is None:
        return f"Nothing is in {settings.publish.alias} yet."
    with _at_work(settings):
        return str(evaluate(settings, model=f"release:{current.number}").note)


def _sweep(settings: Settings, _: bool) -> str:
    from flows import sweeping

    old, litter = sweeping.sweep(settings)
    return f"{old.says} {litter.says}".strip()


evaluate_production = _form(
    "evaluate-production",
    "What is in production, by the present protocol: people, prompts, seeds, models.",
    _evaluate_production,
    by_the_clock=True,
)
sweep = _form(
    "sweep",
    "Delete what killed runs left, what no release needs and photos over their time.",
    _sweep,
    by_the_clock=True,
)
