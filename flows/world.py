"""Paperfolk's photos on disk, in the folders from which the readers of FFHQ and CelebA take them."""

import json
import os
from pathlib import Path

from flows.artifacts import console
from infra.settings import Settings

_PHOTOS_EACH = 3  # of an evaluation person: the reference and two to compare it with


def prepare_world(settings: Settings) -> None:
    """Write what the settings ask for and is not there yet; nothing for other sources."""
    if "paperfolk" not in (settings.ingest.source, settings.evaluate.source):
        return
    from preprocessing.sources import paperfolk

    world, photos = settings.paperfolk, settings.workspace / "photos"
    if settings.ingest.source == "paperfolk":
        count = max(world.photos, read_wish(settings)["photos"])
        with console.status(f"Paperfolk: {count} photos in FFHQ's format"):
            paperfolk.write_ffhq(photos / "ffhq", count, world.seed, world.pixels)
    if settings.evaluate.source == "paperfolk":
        with console.status(f"Paperfolk: {world.evaluation_people} people in CelebA's format"):
            paperfolk.write_celeba(photos / "celeba", world.evaluation_people, _PHOTOS_EACH, world.seed, world.pixels)


def ask_for_more(settings: Settings, more: int) -> None:
    """Let Paperfolk grow by `more` photos. Asking for the same again before it was granted asks for nothing new.

    So a killed `moa demo --more 200` can be typed again.
    """
    wish = read_wish(settings)
    if wish["granted"] or wish["more"] != more:
        before = max(settings.paperfolk.photos, wish["photos"])
        _write_wish(settings, {"photos": before + more, "more": more, "granted": False})


def granted(settings: Settings) -> None:
    """The photos that were asked for are in a release."""
    wish = read_wish(settings)
    if not wish["granted"]:
        _write_wish(settings, {**wish, "granted": True})


def read_wish(settings: Settings) -> dict[str, int | bool]:
    """{"photos": how many there shall be, "more": the last growth, "granted": whether it was trained on}."""
    try:
        return dict(json.loads(_wish_path(settings).read_text("utf-8")))
    except (OSError, ValueError):
        return {"photos": settings.paperfolk.photos, "more": 0, "granted": True}


def _write_wish(settings: Settings, wish: dict[str, int | bool]) -> None:
    path = _wish_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(wish) + "\n", "utf-8")
    os.replace(partial, path)


def _wish_path(settings: Settings) -> Path:
    return settings.workspace / "photos" / "wish.json"
