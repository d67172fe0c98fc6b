"""`moa up`, `down`, `status`, `deploy`, `watch`, `sweep`: the pipeline as a service."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.answers import say_json, show_table
from flows.options import AsJson, Changes, Preset, Source, Workspace, read_settings
from infra.settings import Settings

service = typer.Typer()
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@service.command()
def up(
    preset: Preset = "demo",
    source: Source = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Start the whole service on this machine: Prefect, its database, a worker, Ray, the watcher; it stays up."""
    from flows.artifacts import console
    from flows.run import check_inputs
    from flows.service_parts import Asked, about_store, parts_of
    from infra import service as processes

    settings = read_settings(preset, workspace, changes, source)
    home = settings.service_home
    if processes.is_up(home):
        state = processes.read_state(home)
        if as_json:
            return say_json({"already": True, "home": str(home), **state})
        return typer.echo(f"It is up already, in {home}: moa status says how it is, moa down takes it down.")
    check_inputs(settings)
    absolute = settings.ingest.source if source is not None else None
    parts = parts_of(settings, Asked(_absolute(preset), absolute, list(changes or [])), dry_run)
    store = about_store(settings)
    if dry_run:
        found = [{"part": part.name, "port": part.port or "", "command": " ".join(part.command)} for part in parts]
        return say_json(found) if as_json else show_table("Would be started", found)
    with console.status("starting") as spinner:
        state = processes.start(home, parts, lambda says: spinner.update(says))
    if as_json:
        return say_json({"already": False, "home": str(home), **store, **state})
    _show_parts(state)
    typer.echo(f"store: {store['says']}")
    typer.echo(f"Up, in {home}: photos that come into {settings.ingest.source} lead to a release; moa down ends it.")


@service.command()
def down(
    preset: Preset = "demo",
    source: Source = None,
    as_json: AsJson = False,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Stop all that `moa up` started, also where its supervisor was killed; what it knew stays in its folder."""
    from flows.artifacts import console
    from infra import service as processes

    settings = read_settings(preset, workspace, changes, source)  # the same options as up's
    home = settings.service_home
    with console.status("stopping"):
        ended = processes.stop(home)
    if as_json:
        return say_json({"home": str(home), "processes": ended})
    typer.echo(f"Down: {ended} processes were ended." if ended else f"Nothing of {home} is up.")


@service.command()
def status(
    preset: Preset = "demo", as_json: AsJson = False, workspace: Workspace = None, changes: Changes = None
) -> None:
    """What runs, what waits, what failed last, what is in production and since when."""
    from flows.status import read_status, show_status

    found = read_status(read_settings(preset, workspace, changes))
    say_json(found) if as_json else show_status(found)


@service.command()
def deploy(
    preset: Preset = "demo",
    source: Source = None,
    file: Annotated[
        Path | None, typer.Option(help="Deployments in the form of infra/prefect.yaml, in place of it.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Tell Prefect what to run when, what starts it and who is told; a second time nothing changes."""
    from flows import deploy as deploying
    from flows.artifacts import console
    from flows.prefect_api import prefect_server

    settings = read_settings(preset, workspace, changes, source)
    parameters = _parameters(settings, preset, source, list(changes or []))
    with prefect_server(settings) as client, console.status("comparing with Prefect's server"):
        found = deploying.deploy(client, settings, parameters, file, dry_run)
    rows = [{"kind": one.kind, "name": one.name, "change": one.done} for one in found]
    if as_json:
        return say_json({"dry_run": dry_run, "changes": rows})
    show_table("Would be" if dry_run else "Deployed", rows)


def _parameters(settings: Settings, preset: str, source: str | None, changes: list[str]) -> dict[str, Any]:
    """What the deployments' forms are filled with. A pod has a workspace of its own."""
    here = settings.service.pool_type == "process"
    return {
        "preset": _absolute(preset),
        "source": settings.ingest.source if source is not None else "",
        "storage_root": "",
        "workspace": str(settings.workspace) if here else "",
        "changes": changes,
    }


@service.command()
def watch(
    preset: Preset = "demo",
    source: Source = None,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Look for new photos until it is stopped; once they are all there, an event starts the retraining."""
    import time

    from flows.prefect_api import prefect_server
    from flows.watch import watch

    settings = read_settings(preset, workspace, changes, source)
    with prefect_server(settings):
        watch(settings, lambda line: typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"))


@service.command()
def sweep(
    dry_run: DryRun = False,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Delete what killed runs left, what no release needs, checkpoints with which nobody went on and photos over their
    time."""
    from flows import sweeping

    old, found = sweeping.sweep(read_settings(preset, workspace, changes), dry_run)
    if as_json:
        objects = {**found.shards, **found.checkpoints, **found.garbage.objects}
        photos = [f"{row.source}:{row.origin}" for row in old.photos.photos]
        what = {"objects": objects, "too_old": {"photos": photos, "objects": old.objects, "says": old.says}}
        return say_json({"dry_run": dry_run, **what, "at_work": found.at_work, "says": found.says})
    for says, waits in ((old.says, old.at_work), (found.says, bool(found.at_work))):
        if says:
            typer.echo(says if waits else f"{'There are' if dry_run else 'Deleted'}: {says}")


def _absolute(preset: str) -> str:
    """A preset's file as other processes find it."""
    return str(Path(preset).expanduser().absolute()) if preset.endswith(".toml") else preset


def _show_parts(state: dict[str, Any]) -> None:
    rows = [
        {"part": name, "state": about["state"], "pid": about["pid"] or "", "where": about["says"]}
        for name, about in state["parts"].items()
        if about["state"] != "done"
    ]
    show_table("Service", rows)
