"""`moa pull` and `moa releases …`. Heavy packages are imported inside them: a pull needs neither torch nor Prefect."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.answers import say_json, show_table
from flows.options import AsJson, Changes, Preset, Workspace, read_settings
from flows.quantities import in_bytes

releases = typer.Typer(
    help="Look at releases, compare them, move names, sign, tidy up: list, show, diff, promote, rollback, verify, "
    "keygen, sign, gc, export."
)
pulling = typer.Typer()

_REFERENCE = 'MODEL@NAME, MODEL@NUMBER or MODEL@ID, as "moa@production"; where there is one model, NAME, NUMBER or ID.'
_WATCHED_BYTES = 20_000_000  # less takes no second
Reference = Annotated[str, typer.Argument(metavar="RELEASE", help=_REFERENCE)]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="PUBLIC", help="The public key that must have signed it; else the preset's, if any."),
]
Why = Annotated[str, typer.Option(help="Why; it stays in the name's history.")]


@pulling.command()
def pull(
    reference: Annotated[
        str, typer.Argument(metavar="RELEASE", help=f"{_REFERENCE} Or its address: s3://bucket/prefix/moa@production.")
    ],
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A new or empty folder, or one that holds it; none: one of the cache's."),
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Exchange the release that DIR holds, in one step.")] = False,
    key: Key = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask nobody: only what was pulled before.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the folder's path and nothing else.")] = False,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Fetch a release: what is not here yet, every file's digest, and with a key the signature, checked before the
    folder appears."""
    from infra.pulling import pull_from
    from infra.references import split_address
    from infra.storage import open_store

    root, text = split_address(reference)
    if root:
        store, model, trusted = open_store(root, attempts=3), "", ""
    else:
        settings = read_settings(preset, workspace, changes)
        store = open_store(settings.store_root, settings.storage.endpoint_url, attempts=3)
        model, trusted = settings.publish.model, settings.publish.verify_key
    with _bar("pull: bytes", quiet or as_json) as progress:
        done = pull_from(
            store, text, model, directory, key=key or trusted, update=update, offline=offline, progress=progress
        )
    release = done.release
    if as_json:
        about = {"model": done.model, "number": release.number, "id": release.id}
        say_json({**about, "folder": str(done.folder), "fetched": done.fetched, "signature_verified": done.signed})
    elif quiet:
        typer.echo(done.folder)
    else:
        fetched = f"{in_bytes(done.fetched)} fetched" if done.fetched else "nothing to fetch"
        where = done.folder if directory is None else directory
        verified = f"every digest{' and the signature' if done.signed else ''} verified"
        typer.echo(f"Release {release.number} ({release.id}) is in {where}, {verified}; {fetched}.")


@releases.callback(invoke_without_command=True)
def every(
    context: typer.Context,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Every release, newest first, with the names that point at it and the gate's verdict."""
    if context.invoked_subcommand is None:
        _list(as_json, preset, workspace, changes)


@releases.command("list")
def list_(
    as_json: AsJson = False, preset: Preset = "demo", workspace: Workspace = None, changes: Changes = None
) -> None:
    """The same."""
    _list(as_json, preset, workspace, changes)


def _list(as_json: bool, preset: str, workspace: Path | None, changes: list[str] | None) -> None:
    from flows.releases import listed

    found = listed(read_settings(preset, workspace, changes))
    if as_json:
        return say_json(found)
    rows = []
    for row in found:
        marks = [row["problem"]] if "problem" in row else ["non-commercial data"] if row["non_commercial"] else []
        marks += [f"{name} against the gate: {reason}" for name, reason in row.get("overrides", {}).items()]
        names = ", ".join(row.get("names", []))
        about = {"release": f"{row['model']}@{row['number']}", "id": row.get("id", ""), "names": names}
        about |= {"date": row["date"][:10], "gate": row.get("gate", ""), "from": row.get("start", "")}
        rows.append({**about, "size": in_bytes(row["bytes"]) if "bytes" in row else "", "": "; ".join(marks)})
    show_table("Releases", rows)


@releases.command()
def show(
    reference: Reference,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """All that is known of one release."""
    from flows.releases import shown

    found = shown(read_settings(preset, workspace, changes), reference)
    if as_json:
        return say_json(found)
    names = f", {', '.join(found['names'])}" if found["names"] else ""
    typer.echo(f"{found['model']}@{found['number']} ({found['id']}{names}), {found['date']}")
    typer.echo(found["address"])
    if found["non_commercial"]:
        typer.echo("For non-commercial use only, by the terms of its data.")
    if found["verdict"]:
        typer.echo(f"gate: {found['gate']}: {' '.join(found['verdict']['reasons'])}")
    for one in found["signed_by"]:
        typer.echo(f"signature by the key {one}, not verified here: moa releases verify --key PUBLIC")
    card = found["card"]
    for name in ("samples", "catalog_version", "catalog_digest", "start", "run_id"):
        if name in card:
            typer.echo(f"{name.replace('_', ' ')}: {card[name]}")
    show_table("Metrics", [{"metric": name, "value": _interval(one)} for name, one in found["metrics"].items()])
    show_table(
        "Files", [{**file, "bytes": in_bytes(file["bytes"]), "sha256": file["sha256"][:16]} for file in found["files"]]
    )
    if found["moves"]:
        columns = ("name", "move", "release", "when", "who", "why", "override", "back_to")
        show_table("Moves", [{name: move.get(name, "") for name in columns} for move in found["moves"]])


@releases.command()
def diff(
    old: Reference,
    new: Reference,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Two releases: metrics with intervals, settings, photos that came and went."""
    from flows.releases import difference

    found = difference(read_settings(preset, workspace, changes), old, new)
    if as_json:
        return say_json(found)
    rows = [
        {"metric": row["metric"], found["old"]: _interval(row["old"]), found["new"]: _interval(row["new"])}
        for row in found["metrics"]
    ]
    show_table("Metrics" if found["same_evaluation"] else "Metrics, NOT of the same evaluation", rows)
    show_table("Settings", found["settings"])
    photos = found["photos"]
    if photos is None:
        typer.echo("photos: the catalog that knows them is not here")
    else:
        typer.echo(
            f"photos: catalog version {photos['old_version']} → {photos['new_version']}, {photos['both']} in both"
        )
        for what in ("added", "removed"):
            examples = f": {', '.join(photos[what]['examples'])} …" if photos[what]["examples"] else ""
            typer.echo(f"  {what} {photos[what]['photos']}{examples}")
    typer.echo(f"files that differ: {', '.join(found['files']) or 'none'}")


@releases.command()
def promote(
    reference: Reference,
    why: Annotated[str, typer.Option(help="Why; it stays in the name's history.")] = "",
    name: Annotated[str, typer.Option(help='"production", "staging", …; the preset\'s by default.')] = "",
    override: Annotated[
        str, typer.Option(help="Why the gate's refusal is not to count; it stays in the history.")
    ] = "",
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Let a name point at a release."""
    from flows.releases import promote

    settings = read_settings(preset, workspace, changes)
    name = name or settings.publish.alias
    _say_move(name, promote(settings, reference, name, why, override), as_json)


@releases.command()
def rollback(
    why: Why,
    name: Annotated[str, typer.Option(help='"production", "staging", …; the preset\'s by default.')] = "",
    model: Annotated[str, typer.Option(help="Whose name; the preset's by default.")] = "",
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Let a name point at the release before; again, further back."""
    from flows.releases import roll_back

    settings = read_settings(preset, workspace, changes)
    name = name or settings.publish.alias
    _say_move(name, roll_back(settings, model, name, why), as_json)


@releases.command()
def verify(
    reference: Annotated[str | None, typer.Argument(metavar="RELEASE", help=f"{_REFERENCE} None: all.")] = None,
    mend: Annotated[bool, typer.Option("--mend", help="Put back what this machine's cache has.")] = False,
    mend_from: Annotated[
        Path | None, typer.Option("--mend-from", metavar="DIR", help="Put back what a pulled release has, too.")
    ] = None,
    key: Key = None,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Read every file of a release, or of all, and say what is damaged, and with a key what it did not sign; exit code
    1 where something stays so."""
    from flows.releases import find, registry
    from infra import upkeep
    from infra.registry import Releases, models
    from infra.release_signatures import Verifier

    settings = read_settings(preset, workspace, changes)
    trusted = key or settings.publish.verify_key
    verifier = Verifier(trusted) if trusted else None
    asked: list[tuple[Releases, list[int] | None]]
    if reference is None:
        store = registry(settings)
        asked = [(Releases(store, model), None) for model in models(store)]
    else:
        those, release = find(settings, reference)
        asked = [(those, [release.number])]
    found, left = [], []
    for those, numbers in asked:
        with _bar("verify: bytes", as_json) as progress:
            damaged = upkeep.verify(those, numbers, progress, verifier)
        found += damaged
        left += upkeep.mend(those, damaged, mend_from) if mend or mend_from else damaged
    mended = len(found) - len(left)
    if as_json:
        rows = [{"address": one.address, "problem": one.problem, "needed_by": one.needed_by} for one in left]
        say_json({"damaged": rows, "mended": mended})
    else:
        for one in left:
            needed = f" (needed by {', '.join(one.needed_by)})" if one.needed_by else ""
            typer.echo(f"damaged  {one.address}: {one.problem}{needed}")
        typer.echo(f"{len(found) or 'Nothing is'} damaged{f', {mended} of them mended' if mended else ''}.")
    raise typer.Exit(1 if left else 0)


@releases.command()
def keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Of the private key; the public one is FILE.pub.")],
) -> None:
    """A new key pair, its private key encrypted with the passphrase in MOA_SIGNING_PASSPHRASE if there is one."""
    from infra.release_signatures import make_keys

    public = make_keys(path)
    typer.echo(f"{path} signs and stays with you (publish.signing_key); {public} is for those who pull (--key).")


@releases.command()
def sign(
    reference: Reference,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Vouch for a release that is there with the key in publish.signing_key, as for one of before or with a new key."""
    from flows.releases import sign

    those, release = sign(read_settings(preset, workspace, changes), reference)
    if as_json:
        return say_json({"model": those.model, "number": release.number, "id": release.id})
    typer.echo(f"Release {release.number} ({release.id}) of {those.model} is signed.")


@releases.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; without this it is only listed.")] = False,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Files that no release needs and what killed publishers left, older than a day; others may publish meanwhile."""
    from flows.releases import registry
    from infra import upkeep

    store = registry(read_settings(preset, workspace, changes))
    garbage = upkeep.find_garbage(store)
    deleted = upkeep.collect_garbage(store, garbage) if yes else 0
    if as_json:
        unfinished = [one.key for one in garbage.unfinished]
        return say_json({"objects": garbage.objects, "unfinished": unfinished, "deleted": deleted})
    for key, size in garbage.objects.items():
        typer.echo(f"{store.uri(key)}  {in_bytes(size)}")
    for one in garbage.unfinished:
        typer.echo(f"{one.key}  never finished")
    total = f"{len(garbage.objects)} objects of {in_bytes(sum(garbage.objects.values()))}"
    said = f"{total} and {len(garbage.unfinished)} unfinished uploads that no release needs"
    typer.echo(f"Deleted: {said}." if yes else f"There are {said}: add --yes to delete them.")


@releases.command()
def export(
    reference: Reference,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """A release as a model repository for Hugging Face's hub, whose own client uploads it."""
    from flows.releases import export

    release = export(read_settings(preset, workspace, changes), reference, directory)
    if as_json:
        return say_json({"number": release.number, "id": release.id, "folder": str(directory)})
    typer.echo(f"Release {release.number} is in {directory}: hf upload OWNER/NAME {directory} puts it on the hub.")


@contextmanager
def _bar(title: str, silent: bool) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (bytes done, bytes in all), which shows a bar if these are many."""
    if silent:
        yield lambda done, total: None
        return
    from contextlib import ExitStack

    with ExitStack() as stack:
        tracks: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not tracks and total < _WATCHED_BYTES:
                return
            if not tracks:
                from flows.artifacts import Track

                tracks.append(stack.enter_context(Track(title, total)))
            tracks[0].to(done)

        yield progress


def _say_move(name: str, move: Any, as_json: bool) -> None:
    if as_json:
        about = {"name": name, "move": move.number, "release": move.release.number, "id": move.release.id}
        return say_json({**about, "who": move.who, "when": move.when, "why": move.why, "override": move.override})
    typer.echo(f"{name} points at release {move.release.number} ({move.release.id}): {move.why}")


def _interval(measure: Mapping[str, float | None] | None) -> str:
    if measure is None:
        return ""
    mean, low, high = (
        ("∞" if value is None else f"{value:.4g}") for value in (measure[p] for p in ("mean", "low", "high"))
    )
    return mean if mean == low == high else f"{mean} ({low} – {high})"
