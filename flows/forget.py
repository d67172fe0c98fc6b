"""`moa forget`: photos are taken back, and what contains them is listed. Neither Prefect nor Ray is needed."""

import shutil
from pathlib import Path

from rich.console import Console

from flows import artifacts, job_records
from flows.holdings import Holdings, holdings, objects_of_forgotten
from flows.run import Run
from flows.session import alone_in
from infra.access_log import note_access
from infra.errors import UserError
from infra.settings import Settings
from preprocessing.catalog import PhotoRow
from preprocessing.forgetting import FORGET, Found, find_person, find_photo, shards_to_replace, unforgotten
from preprocessing.forgetting import forget as forget_photos
from preprocessing.near_duplicates import STAGE as DUPLICATES

_SHOWN = 20  # lines of a list


def forget(
    settings: Settings,
    photo: str | None,
    person: str | None,
    reason: str,
    ahead: bool = False,
    dry_run: bool = False,
) -> None:
    """List what contains the photo or the person's photos; then, unless `dry_run`, forget them.

    ahead: what has not come yet is to be refused when it does. Raises UserError where nothing is found, and where
    another run is at work in the workspace or a job on a cluster in the store.
    """
    if (photo is None) == (person is None):
        raise UserError("Name one photo or one person: moa forget PHOTO, or moa forget --person SOURCE:IDENTITY.")
    if dry_run:
        _show(*_looked_up(Run(settings), photo, person, ahead))
        _say("Nothing was changed.")
        return
    with alone_in(settings.workspace):
        run = Run(settings)
        _nobody_writes(run)
        found, where = _looked_up(run, photo, person, ahead)
        _show(found, where)
        new = unforgotten(run.catalog, found)
        if new == Found([]):
            _say("All of it was forgotten before; nothing was changed.")
        else:
            note_access(run.store, "forget", _count(len(new.photos), "photo"))
            with artifacts.Track("forget: shards", len(shards_to_replace(run.catalog, new.keys)) or 1) as track:
                version = forget_photos(run.store, run.catalog, found, reason, lambda done, of: track.to(done))
            _say(f"Forgotten from catalog version {version} on: {_count(len(new.photos), 'photo')}.")
        if where.releases:
            _say("moa retrain --from-scratch makes a release that learned nothing from them, also not by a warm start.")
        if left := len(objects_of_forgotten(run)):
            _say(f"{_count(left, 'object')} still hold them: moa forget --purge lists these.")


def purge(settings: Settings, confirmed: bool) -> None:
    """List what still holds forgotten photos; delete it where that was confirmed."""
    with alone_in(settings.workspace):
        run = Run(settings)
        _nobody_writes(run)
        keys = objects_of_forgotten(run)
        unfinished = [] if "://" in settings.store_root else sorted(Path(settings.store_root).rglob(".partial-*"))
        # Runs' pages, the report and a training's pictures show photos; which ones is not written down.
        pages = [path for name in ("report.html", "prefect") if (path := settings.workspace / name).exists()]
        grids = [key for key in run.store.list("runs/") if "/pictures/" in key] if run.catalog.photos(FORGET) else []
        if not keys and not unfinished and not grids:
            _say("No object holds a forgotten photo.")
            return
        _list("objects", [run.store.uri(key) for key in keys])
        _list("files that a killed run left half written", [str(path) for path in unfinished])
        told = run.store.list(job_records.ROOT)  # what jobs showed goes to such pages
        _list("pages and pictures that may show them", [*map(str, pages), *map(run.store.uri, [*grids, *told])])
        if not confirmed:
            _say("Nothing was deleted: add --yes. Older catalog versions cannot be trained on again afterwards.")
            return
        note_access(run.store, "purge", _count(len(keys) + len(grids), "object"))
        for key in artifacts.tracked([*keys, *grids], len(keys) + len(grids), "purge: objects"):
            run.store.delete(key)
        for key in told:
            run.store.delete(key)
        for path in [*unfinished, *pages]:
            _remove(path)
        _say(f"Deleted: {_count(len(keys) + len(grids), 'object')}. moa report writes the report again.")


def _nobody_writes(run: Run) -> None:
    """The workspace's lock holds no job on a cluster, whose driver may have been killed."""
    if jobs := job_records.at_work(run.store):
        raise UserError(f"The job {jobs[0].job_id} may be writing into {run.settings.store_root}: wait, or stop it.")


def _looked_up(run: Run, photo: str | None, person: str | None, ahead: bool) -> tuple[Found, Holdings]:
    if run.catalog.version < 0:
        raise UserError(f"There is no catalog in {run.settings.store_root}: nothing has been ingested there.")
    with artifacts.console.status("looking it up"):
        if photo is not None:
            found = find_photo(run.catalog, photo)
            missing = f"No photo here has the bytes of {photo}"
        else:
            found = find_person(run.store, run.catalog, person or "")
            missing = f"No photo here shows {person}"
        where = holdings(run, found.keys | ({found.key} - {""}), found.person)
    here = found.photos or where.evaluations
    if not here and not ahead and unforgotten(run.catalog, found) != Found([]):
        raise UserError(f"{missing}: add --ahead to have it refused if it comes.")
    copies = _copies(run, found)
    if copies:
        _list("near-duplicates, not forgotten by this", [f"{row.source}:{row.origin}" for row in copies])
    return found, where


def _copies(run: Run, found: Found) -> list[PhotoRow]:
    """Photos that repeat one of these, or that one of these repeats, by the rows of the search."""
    rows = run.catalog.photos(DUPLICATES)
    marks = {f"({key[:16]})" for key in found.keys}
    repeating = {row.key: row for row in rows if row.key not in found.keys and any(m in row.detail for m in marks)}
    repeated = [row.detail for row in rows if row.key in found.keys]
    leaders = {
        row.key: row
        for row in run.catalog.photos("ingest")
        if row.key and row.key not in found.keys and any(f"({row.key[:16]})" in detail for detail in repeated)
    }
    return list((repeating | leaders).values())


def _show(found: Found, where: Holdings) -> None:
    _list("photos", [f"{row.source}:{row.origin}  {row.key[:16]}" for row in found.photos])
    _list("shards", [row.object_key for row in where.shards])
    if where.versions:
        _list("dataset versions", [f"catalog versions {where.versions[0]} to {where.versions[1]}"])
    releases = []
    for one in where.releases:
        how = f"through its start from release {one.through.number}" if one.through else _count(one.photos, "photo")
        releases.append(f"release {one.release.number} ({one.release.id}): {how}")
    _list("releases", releases)
    _list("evaluations that show them", where.evaluations)


def _list(title: str, lines: list[str]) -> None:
    if lines:
        more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        _say(f"{title} ({len(lines)})")
        for line in [*lines[:_SHOWN], *more]:
            _say(f"  {line}")


def _say(text: str) -> None:
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
