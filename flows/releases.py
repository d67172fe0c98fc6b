"""What people do with releases: look at them, compare two, move names, hand one on. No Prefect, no Ray."""

import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.errors import UserError, written_by_us
from infra.manifest import MANIFEST, SIGNATURE
from infra.pulling import pull_from
from infra.references import is_name
from infra.registry import Move, Release, Releases, models, open_releases
from infra.release_signatures import Signer, signers
from infra.settings import Settings
from infra.storage import ObjectStore, open_store

_EXAMPLES = 5
# What of a card says how a release was made.
_SETTINGS = ("train", "models", "stages")


def registry(settings: Settings) -> ObjectStore:
    """The store that holds the settings' releases."""
    return open_store(settings.store_root, settings.storage.endpoint_url)


def find(settings: Settings, reference: str) -> tuple[Releases, Release]:
    """The release that is meant, among its model's. Raises UserError."""
    releases, which = open_releases(registry(settings), reference, settings.publish.model)
    return releases, releases.resolve(which)


def listed(settings: Settings) -> list[dict[str, Any]]:
    """A row for each release of each model, newest first. One that cannot be read has its "problem"."""
    store, rows = registry(settings), []
    for model in models(store):
        releases = Releases(store, model)
        pointing = _names(releases)
        for number, written in sorted(releases.dates().items(), reverse=True):
            row: dict[str, Any] = {"model": model, "number": number, "date": _date(written)}
            try:
                release = releases.resolve(str(number))
                card, files = releases.card(release), releases.manifest(release).files
            except UserError as error:
                rows.append(row | {"problem": str(error)})
                continue
            moves = pointing.get(release, {})
            row |= {"id": release.id, "names": list(moves), "gate": gate_says(card)}
            row |= {"overrides": {name: move.override for name, move in moves.items() if move.override}}
            row |= {"start": str(card.get("start", "")), "bytes": sum(file.content.size for file in files)}
            rows.append(row | {"non_commercial": non_commercial(card)})
    return rows


def shown(settings: Settings, reference: str) -> dict[str, Any]:
    """All that is known of one release; the moves of the name that was asked for, else those that came to it."""
    releases, which = open_releases(registry(settings), reference, settings.publish.model)
    release = releases.resolve(which)
    card = releases.card(release)
    files = [
        {"name": file.name, "role": file.role, "bytes": file.content.size, "sha256": file.content.sha256}
        for file in releases.manifest(release).files
    ]
    moves = [
        _move(name, move)
        for name in releases.names.all()
        for move in releases.history(name)
        if which == name or (not is_name(which) and move.release == release)
    ]
    return {
        "model": releases.model,
        "number": release.number,
        "id": release.id,
        "address": releases.uri(release),
        "date": _date(releases.dates()[release.number]),
        "names": list(_names(releases).get(release, {})),
        "gate": gate_says(card),
        "non_commercial": non_commercial(card),
        "files": files,
        "signed_by": signers(releases.store, releases.manifest(release)),
        "moves": moves,
        "metrics": measures(card),
        "card": {name: value for name, value in card.items() if name not in ("metrics", "verdict")},
        "verdict": card.get("verdict"),
    }


def difference(settings: Settings, old: str, new: str) -> dict[str, Any]:
    """Two releases: metrics with their intervals, settings that differ, photos that came and went, files."""
    (one, first), (other, second) = find(settings, old), find(settings, new)
    before, after = one.card(first), other.card(second)
    measured = (measures(before), measures(after))
    files = [
        {file.name: file.content.sha256 for file in releases.manifest(release).files}
        for releases, release in ((one, first), (other, second))
    ]
    return {
        "old": f"{one.model}@{first.number}",
        "new": f"{other.model}@{second.number}",
        "metrics": [
            {"metric": name, "old": measured[0].get(name), "new": measured[1].get(name)}
            for name in dict.fromkeys([*measured[0], *measured[1]])
        ],
        "same_evaluation": before.get("evaluation") == after.get("evaluation"),
        "settings": list(_changes(before, after)),
        "photos": _photos(settings, before, after),
        "files": sorted(name for name in {**files[0], **files[1]} if files[0].get(name) != files[1].get(name)),
    }


def promote(settings: Settings, reference: str, name: str, why: str, override: str) -> Move:
    """Let the name point at the release; the name's last move.

    What the gate refused needs `override`, why that is not to count, and then `why` may be "": the history says what
    the gate's objection was. Raises UserError without a reason.
    """
    releases, release = find(settings, reference)
    why, override = (" ".join(text.split()) for text in (why, override))
    verdict = releases.card(release).get("verdict")
    if verdict and verdict["promote"]:
        why, override = why or override, ""
    else:
        said = verdict["reasons"][0].rstrip(".") if verdict else "it was never held against it"
        if not override:
            raise UserError(
                f"The gate does not let release {release.number} of {releases.model} through ({said}): "
                'add --override "reason" to promote it all the same; the reason stays in the history.'
            )
        why = why or f"against the gate: {said}."
    if not why:
        raise UserError('A name moves for a reason, which stays in its history: give --why "reason".')
    releases.promote(name, release.id, why, override)
    return releases.history(name)[-1]


def roll_back(settings: Settings, model: str, name: str, why: str) -> Move:
    """Let the name point where it did before; its last move. model: "" = the settings'."""
    releases = Releases(registry(settings), model or settings.publish.model)
    releases.roll_back(name, why)
    return releases.history(name)[-1]


def sign(settings: Settings, reference: str) -> tuple[Releases, Release]:
    """Let the settings' key vouch for a release that is there. Raises UserError where the settings name none."""
    if not settings.publish.signing_key:
        raise UserError("No key to sign with is named: add --set publish.signing_key=FILE.")
    releases, release = find(settings, reference)
    releases.sign(release, Signer(settings.publish.signing_key))
    return releases, release


def export(settings: Settings, reference: str, directory: Path) -> Release:
    """The release in the form of a model repository of Hugging Face's hub, in a new or empty folder.

    A release of before, whose README has no header, gets today's, and neither manifest nor signature, which would no
    longer fit.
    """
    releases, release = find(settings, reference)
    key = settings.publish.verify_key
    source = pull_from(releases.store, f"{releases.model}@{release.number}", "", None, key=key).folder
    directory = Path(os.path.realpath(directory.expanduser()))
    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} is not an empty folder: name a new one to export into.")
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    with written_by_us(directory, "name another folder"):
        try:
            shutil.copytree(source, partial)
            for path in partial.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            (partial / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            _with_header(partial, releases, release, settings.publish.alias)
            partial.replace(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return release


def _with_header(folder: Path, releases: Releases, release: Release, alias: str) -> None:
    from flows.model_card import has_header, model_card

    readme, card = folder / "README.md", releases.card(release)
    if readme.is_file() and has_header(readme.read_text("utf-8")):
        return
    if "metrics" in card and "verdict" in card:
        readme.write_text(model_card(card, None, releases.model, alias), "utf-8")
        (folder / MANIFEST).unlink()
        (folder / SIGNATURE).unlink(missing_ok=True)


def gate_says(card: Mapping[str, Any]) -> str:
    """The gate's verdict in a word."""
    verdict = card.get("verdict")
    return "" if verdict is None else "passed" if verdict["promote"] else "refused"


def non_commercial(card: Mapping[str, Any]) -> bool:
    """Whether terms of the release's data keep commerce out; False also where that is not known, as of old releases."""
    return any(row["non_commercial"] for row in card.get("licences", []))


def measures(card: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Metric → {"mean", "low", "high"}, of all that have an interval."""
    found = {}
    for name, value in (card.get("metrics") or {}).items():
        if isinstance(value, Mapping) and {"mean", "low", "high"} <= value.keys():
            found[name] = {part: value[part] for part in ("mean", "low", "high")}
    return found


def _names(releases: Releases) -> dict[Release, dict[str, Move]]:
    """Release → the names that point at it, each with the move that brought it there."""
    found: dict[Release, dict[str, Move]] = {}
    for name in releases.names.all():
        move = releases.names.current(name)
        if move is not None:
            found.setdefault(move.release, {})[name] = move
    return found


def _move(name: str, move: Move) -> dict[str, Any]:
    row = {
        "name": name,
        "move": move.number,
        "release": move.release.number,
        "when": move.when,
        "who": move.who,
        "why": move.why,
    }
    row |= {"override": move.override} if move.override else {}
    return row | ({"back_to": move.back_to} if move.back_to else {})


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (*_SETTINGS, "start"):
        one, other = (side.get(group) for side in (before, after))
        one, other = ({"": side} if not isinstance(side, Mapping) else side for side in (one, other))
        for name in dict.fromkeys([*one, *other]):
            if one.get(name) != other.get(name):
                setting = f"{group}.{name}".rstrip(".")
                yield {"setting": setting, "old": one.get(name), "new": other.get(name)}


def _photos(settings: Settings, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any] | None:
    """Photos that one training read and the other did not; None where the catalog that knows them is not here."""
    if not all({"catalog_version", "stages"} <= card.keys() for card in (before, after)):
        return None
    from flows.run import Run
    from preprocessing.training_photos import training_photos

    catalog = Run(settings).catalog
    if catalog.version < max(before["catalog_version"], after["catalog_version"]):
        return None
    old, new = (training_photos(catalog, card["stages"], card["catalog_version"]) for card in (before, after))

    def only_in(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        keys = one.keys() - other.keys()
        names = sorted(f"{one[key].source}:{one[key].origin}" for key in keys)
        return {"photos": len(keys), "examples": names[:_EXAMPLES]}

    versions = {"old_version": before["catalog_version"], "new_version": after["catalog_version"]}
    return {**versions, "added": only_in(new, old), "removed": only_in(old, new), "both": len(old.keys() & new.keys())}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
