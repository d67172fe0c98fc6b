"""`moa …`: the commands. Heavy packages are imported inside them, so that `moa --help` is quick."""

import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.answers import say_json
from flows.application_commands import applications
from flows.catalog_commands import catalog, planning
from flows.evaluation_commands import MODELS, comparing
from flows.metrics_command import watching
from flows.options import AsJson, Changes, Preset, Source, Workspace, read_settings
from flows.release_commands import pulling, releases
from flows.service_commands import service
from flows.zoo import zoo
from infra.errors import UserError, UserNotice
from infra.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Photos in at one end; a verified, better checkpoint out at the other.",
)
app.add_typer(zoo, name="zoo")
app.add_typer(catalog, name="catalog")
app.add_typer(planning)
app.add_typer(comparing)
app.add_typer(applications)
app.add_typer(pulling)
app.add_typer(service)
app.add_typer(watching)
app.add_typer(releases, name="releases")

_STOPPED = "moa: stopped; the same command continues where it was."
_MODULES = {"duplicates": "near_duplicates"}  # where a stage's module has another name
_INTERRUPTED = 130  # the exit code that shells know
_PATIENCE_SECONDS = 5.0  # for Prefect to note that the run was stopped
_CLUSTER_SECONDS = 15.0  # for a cluster to note that a job is to be stopped
_stopping: Callable[[float], str] | None = None  # waits so long for that, and says what came of it
_begun, _last_word = threading.Lock(), threading.Lock()  # taken once: by whoever begins to stop, and by whoever leaves
_told = threading.Event()  # those who are to stop

FromScratch = Annotated[bool, typer.Option("--from-scratch", help="Start with a fresh adapter, not a released one.")]


@app.command()
def demo(
    more: Annotated[int, typer.Option(min=0, help="Let Paperfolk grow by so many photos first.")] = 0,
    from_scratch: FromScratch = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """The whole journey on this machine: Paperfolk in, release and report out."""
    from flows.demo import demo

    demo(read_settings(preset, workspace, changes), more, from_scratch)


@app.command()
def retrain(
    preset: Preset = "demo",
    source: Source = None,
    from_scratch: FromScratch = False,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """All seven stages on a source's photos; ends early where nothing is new."""
    from flows.demo import retrain_and_report

    retrain_and_report(read_settings(preset, workspace, changes, source), from_scratch)


def _stage(name: str, settings: Settings, from_scratch: bool = False) -> None:
    from flows.artifacts import console
    from flows.run import check_inputs
    from flows.session import machinery

    check_inputs(settings)
    with machinery(settings):
        from flows.world import prepare_world

        prepare_world(settings)
        flow = getattr(importlib.import_module(f"flows.{_MODULES.get(name, name)}"), name)
        wants_start = name in ("train", "evaluate", "publish")
        result = flow(settings, from_scratch=from_scratch) if wants_start else flow(settings)
    console.print(f"[bold]{result.stage}[/] {result.note} [dim]{result.seconds:.0f} s[/]")


@app.command()
def ingest(
    preset: Preset = "demo", source: Source = None, workspace: Workspace = None, changes: Changes = None
) -> None:
    """Stage 1: read, check and crop new photos."""
    _stage("ingest", read_settings(preset, workspace, changes, source))


@app.command()
def duplicates(preset: Preset = "demo", workspace: Workspace = None, changes: Changes = None) -> None:
    """Stage 1b: find photos that repeat another one (where near_duplicates.search is on)."""
    _stage("duplicates", read_settings(preset, workspace, changes))


@app.command()
def caption(preset: Preset = "demo", workspace: Workspace = None, changes: Changes = None) -> None:
    """Stage 2: a sentence for every photo."""
    _stage("caption", read_settings(preset, workspace, changes))


@app.command()
def segment(preset: Preset = "demo", workspace: Workspace = None, changes: Changes = None) -> None:
    """Stage 3: the people in every photo."""
    _stage("segment", read_settings(preset, workspace, changes))


@app.command()
def shard(preset: Preset = "demo", workspace: Workspace = None, changes: Changes = None) -> None:
    """Stage 4: words bound to people, features precomputed."""
    _stage("shard", read_settings(preset, workspace, changes))


@app.command()
def train(
    preset: Preset = "demo",
    from_scratch: FromScratch = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would need and cost, and how that is computed.")
    ] = False,
    as_json: AsJson = False,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Stage 5: train MoA, or continue where a killed training was; --dry-run starts nothing."""
    settings = read_settings(preset, workspace, changes)
    if dry_run:
        _say_training_plan(settings, as_json)
    elif as_json:
        raise UserError("--json is for what --dry-run says: add --dry-run.")
    else:
        _stage("train", settings, from_scratch)


def _say_training_plan(settings: Settings, as_json: bool) -> None:
    import json

    from flows.artifacts import console
    from flows.training_plan import plan_training, show_plan

    with console.status("counting what a step needs"):
        plan = plan_training(settings)
    typer.echo(json.dumps(plan, indent=1, ensure_ascii=False)) if as_json else show_plan(plan)


@app.command()
def evaluate(
    preset: Preset = "demo",
    from_scratch: FromScratch = False,
    model: Annotated[str, typer.Option(metavar="MODEL", help=f"Instead of the training: {MODELS}")] = "",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Stage 6: draw people never seen in training, and measure; with --model, any model by the same protocol."""
    settings = read_settings(preset, workspace, changes)
    if not model:
        _stage("evaluate", settings, from_scratch)
    elif from_scratch:
        raise UserError("--from-scratch says which training is evaluated, and --model something else: give one.")
    else:
        from flows.evaluation_commands import evaluate_model

        evaluate_model(settings, model)


@app.command()
def publish(
    preset: Preset = "demo",
    from_scratch: FromScratch = False,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Stage 7: a release, and production if the gate says so."""
    _stage("publish", read_settings(preset, workspace, changes), from_scratch)


@app.command()
def forget(
    photo: Annotated[
        str | None,
        typer.Argument(help="Its NAME or SOURCE:NAME, 8 or more digits of its SHA-256, or its file."),
    ] = None,
    person: Annotated[
        str | None, typer.Option(metavar="SOURCE:IDENTITY", help="All photos of somebody, as celeba:2880.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; it stands in the catalog.")] = "asked for",
    ahead: Annotated[bool, typer.Option("--ahead", help="Refuse what has not come yet, if it does.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what contains it.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="List the old objects that hold forgotten photos.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --purge: delete them.")] = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Take a photo, or all photos of a person, out of every later version; list what contains them."""
    from flows import forget as forgetting

    settings = read_settings(preset, workspace, changes)
    if not purge:
        forgetting.forget(settings, photo, person, reason, ahead, dry_run)
    elif photo or person:
        raise UserError("--purge deletes what holds any forgotten photo: name no photo or person beside it.")
    else:
        forgetting.purge(settings, yes)


@app.command()
def export(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help="fastcomposer")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Write the training samples in another project's format."""
    if kind != "fastcomposer":
        raise UserError(f"There is no format {kind!r}: write moa export fastcomposer DIR.")
    from flows.export import export_fastcomposer

    done = export_fastcomposer(read_settings(preset, workspace, changes), directory)
    typer.echo(f"{done.samples} samples are in {directory}.")


@app.command()
def doctor(
    preset: Preset = "demo", as_json: AsJson = False, workspace: Workspace = None, changes: Changes = None
) -> None:
    """Say what a preset needs and whether it is here."""
    from infra.doctor import diagnose

    checks = diagnose(read_settings(preset, workspace, changes))
    if as_json:
        say_json([{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks])
    for check in checks if not as_json else ():
        typer.echo(f"{'ok     ' if check.ok else 'missing'}  {check.name}: {check.detail}")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def report(preset: Preset = "demo", workspace: Workspace = None, changes: Changes = None) -> None:
    """Write the last run's report.html again."""
    import json

    settings = read_settings(preset, workspace, changes)
    path = settings.workspace / "summary.json"
    if not path.is_file():
        raise UserError(f"There is no {path}: run moa demo or moa retrain first.")
    from flows.page import write_report
    from flows.run import Run

    typer.echo(f"{write_report(Run(settings), json.loads(path.read_text('utf-8')))}")


def main() -> None:
    """The console script: a user's mistake is one sentence and exit code 2, Ctrl-C one line and 130."""
    signal.signal(signal.SIGINT, _interrupt)
    hears, rings = os.pipe()
    os.set_blocking(rings, False)
    signal.set_wakeup_fd(rings, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's Ctrl-C is no second one
    threading.Thread(target=_listen, args=(hears,), daemon=True).start()
    warnings.showwarning = _say_warning
    status = _run()
    sys.stdout.flush()
    sys.stderr.flush()
    # What has threads at this point (Prefect's, Ray's) has nothing left to do; waiting for it can take long.
    os._exit(status)


def _interrupt(*_: object) -> None:
    """The first Ctrl-C: commands end as after an exception, if they can."""
    signal.signal(signal.SIGINT, _leave_at_once)
    _stop_soon()
    raise KeyboardInterrupt


def _listen(hears: int) -> None:
    """Hear Ctrl-C also where the main thread waits without an end: polars' own handler of the signal has such a wait
    begun again, and Python's, which it calls, comes to `_interrupt` only after that."""
    heard = 0
    while True:
        for number in os.read(hears, 64):
            if number == signal.SIGINT and signal.getsignal(number) in (_interrupt, _leave_at_once):
                heard += 1
                _stop_soon() if heard == 1 else _leave(0.0)


def _stop_soon() -> None:
    """Stop within seconds, whoever waits for what.

    A terminal sends Ctrl-C to Prefect's server and to Ray too, and their clients in this process would wait long for
    them. A run may be killed at any moment, so nothing is lost by leaving.
    """
    global _stopping
    if not _begun.acquire(blocking=False):
        _told.wait(_PATIENCE_SECONDS)  # whoever goes on takes the list of jobs with it
        return
    if cluster_job := sys.modules.get("flows.cluster_job"):
        _stopping = cluster_job.begin_to_stop()
    _told.set()
    timer = threading.Timer(_PATIENCE_SECONDS, _leave)
    timer.daemon = True
    timer.start()


def _leave_at_once(*_: object) -> None:
    _leave(0.0)


def _leave(patience: float = _CLUSTER_SECONDS) -> None:
    import psutil

    said = _farewell(patience)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    _last_word.acquire(timeout=1.0)
    os.write(2, f"{said}\n".encode())
    os._exit(_INTERRUPTED)


def _farewell(patience: float) -> str:
    """That the command was stopped, and what of it goes on or does not elsewhere."""
    said = _stopping(patience) if _stopping is not None else ""
    return f"{_STOPPED}\n{said}".strip()


def _run() -> int:
    try:
        status = app(standalone_mode=False, prog_name="moa")  # the code of a typer.Exit, else what the command returned
        if status == _INTERRUPTED:  # which is what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except UserError as error:
        typer.echo(f"moa: {error}", err=True)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(_farewell(_CLUSTER_SECONDS), err=True)
        return _INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own: a wrong option or argument
            _say_usage(error)
            return int(error.exit_code)
        traceback.print_exc()
        return 1
    return status if isinstance(status, int) else 0


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """A notice is one sentence, as an error is; what libraries warn of keeps Python's own form."""
    if issubclass(category, UserNotice):
        typer.echo(f"moa: {message}", err=True)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def _say_usage(error: Any) -> None:
    """Typer's message in one line; nothing after the help that a command without arguments has printed."""
    if message := " ".join(error.format_message().split()):
        context = getattr(error, "ctx", None)
        hint = f": see {context.command_path} --help." if context else "."
        typer.echo(f"moa: {message.rstrip('.')}{hint}", err=True)


if __name__ == "__main__":
    main()
