"""`moa catalog …` and `moa plan`: what is known, and what would be done. They start nothing and write nothing."""

from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.answers import say_json as _say_json
from flows.answers import show_table as _table
from flows.options import AsJson, Changes, Preset, Workspace, read_settings
from flows.quantities import duration, in_bytes
from infra.errors import UserError

if TYPE_CHECKING:
    from flows.run import Run

catalog = typer.Typer(help="What became of every photo and shard: summary, versions, diff, why, sql, verify.")
planning = typer.Typer()

Version = Annotated[int | None, typer.Option(min=0, help="Of the catalog; the newest by default.")]
_MOST_ROWS = 200  # of a query's answer, shown to people


@catalog.callback(invoke_without_command=True)
def summary(
    context: typer.Context,
    version: Version = None,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Every photo with its fate, counted; shards and bytes per stage."""
    if context.invoked_subcommand is not None:
        return
    from preprocessing import lookup

    run = _run(preset, workspace, changes)
    version = lookup.checked_version(run.catalog, version)
    with _busy("counting"):
        found = lookup.summary(run.catalog, run.store, _fingerprints(run), version)
    if as_json:
        return _say_json(found)
    _table(f"Photos, version {version}", found["photos"])
    _table("Refused", found["refused"])
    _table("Shards", [{**row, "bytes": in_bytes(row["bytes"])} for row in found["shards"]])


@catalog.command()
def versions(
    as_json: AsJson = False, preset: Preset = "demo", workspace: Workspace = None, changes: Changes = None
) -> None:
    """Every version: when it was made, and what it added."""
    from preprocessing import lookup

    found = lookup.versions(_run(preset, workspace, changes).catalog)
    _say_json(found) if as_json else _table("Versions", found)


@catalog.command()
def diff(
    old: Annotated[int, typer.Argument(min=0, help="A version.")],
    new: Annotated[int, typer.Argument(min=0, help="A later one.")],
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """What one version knows and another does not."""
    from preprocessing import lookup

    run = _run(preset, workspace, changes)
    found = lookup.difference(run.catalog, *(lookup.checked_version(run.catalog, one) for one in (old, new)))
    if as_json:
        return _say_json(found)
    for side, where in (("added", f"In {new}, not in {old}"), ("gone", f"In {old}, not in {new}")):
        photos = [{**row, "examples": ", ".join(row["examples"])} for row in found[side]["photos"]]
        if photos or found[side]["shards"] or side == "added":
            _table(f"{where}: photos", photos)
            _table(f"{where}: shards", found[side]["shards"])


@catalog.command()
def why(
    photo: Annotated[str, typer.Argument(help="Its path inside the source, the beginning of its key, or a file.")],
    version: Version = None,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Why a photo was refused, or where it is now."""
    from preprocessing import lookup

    run = _run(preset, workspace, changes)
    version = lookup.checked_version(run.catalog, version)
    found = lookup.why(run.catalog, photo, _fingerprints(run), version)
    if as_json:
        return _say_json(found)
    for one in found:
        places = "".join(f"\n  {stage}: {run.store.uri(key)}" for stage, key in one["shards"].items())
        name = f"{one['source']} {one['origin']} ({one['key'][:16] or 'never read'})"
        typer.echo(f"{name}: {one['fate']}{places}")


@catalog.command()
def sql(
    query: Annotated[str, typer.Argument(help='As "SELECT reason, count(*) FROM photos GROUP BY reason".')],
    version: Version = None,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Ask in DuckDB's SQL: views photos (each once, with its fate), photo_rows and shards."""
    from preprocessing import lookup

    run = _run(preset, workspace, changes)
    version = lookup.checked_version(run.catalog, version)
    found = lookup.query(run.catalog, query, _fingerprints(run), version)
    if as_json:
        return _say_json(found.to_dicts())
    more = f", the first {_MOST_ROWS} of them" if found.height > _MOST_ROWS else ""
    _table(f"{found.height} row{'s' * (found.height != 1)}{more}", found.head(_MOST_ROWS).to_dicts(), found.columns)


@catalog.command()
def verify(
    version: Version = None,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Read every shard and say what is damaged, as after a restoring; exit code 1 where something is."""
    from flows.artifacts import telling
    from preprocessing import lookup

    run = _run(preset, workspace, changes)
    version = lookup.checked_version(run.catalog, version)
    with telling() as tell:
        found = lookup.damaged(run.catalog, run.store, version, lambda done, all: tell("verify: shards", done, all))
    if as_json:
        _say_json({"version": version, "damaged": found})
    else:
        for one in found:
            typer.echo(f"damaged  {run.store.uri(one['key'])}: {one['problem']}")
        typer.echo(f"{len(found) or 'Nothing is'} damaged in version {version}.")
    raise typer.Exit(1 if found else 0)


@planning.command()
def access(
    days: Annotated[float, typer.Option(min=0, help="Of the last so many days.")] = 30.0,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Who had photos in their hands: every stage's run, export, forget and purge, with user, machine and time."""
    from infra.access_log import accesses
    from infra.storage import explained

    store = _run(preset, workspace, changes).store
    with _busy("reading"), explained(store):
        found = [asdict(one) for one in accesses(store, days)]
    _say_json(found) if as_json else _table(f"Accesses of the last {days:g} days", found)


@planning.command()
def plan(
    preset: Preset = "demo",
    source: Annotated[str | None, typer.Option(help="As of moa retrain.")] = None,
    as_json: AsJson = False,
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """What a run with these settings would do, why, and roughly how long; it starts and writes nothing."""
    with _busy("loading"):
        from flows.plan import plan_run
    with _busy("looking for new photos and unfinished shards"):
        found = plan_run(read_settings(preset, workspace, changes, source))
    if as_json:
        return _say_json(found)
    shown = [{**row, "takes": duration(row["seconds"]), "why": "; ".join(row["why"])} for row in found["stages"]]
    _table("Plan", shown, ["stage", "done", "pending", "takes", "why"])
    typer.echo(found["says"])


def _busy(what: str) -> AbstractContextManager[Any]:
    from flows.artifacts import console

    return console.status(what)


def _run(preset: str, workspace: Any, changes: list[str] | None) -> "Run":
    from flows.run import Run

    return Run(read_settings(preset, workspace, changes))


def _fingerprints(run: "Run") -> dict[str, str] | None:
    """Of the present settings; None, by which every stage's rows count, where the models to name them are not here."""
    try:
        return run.fingerprints
    except UserError:
        return None
