"""`moa generate`: one picture of somebody, from a release and their photo. No Ray, no Prefect."""

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.run import Run
from infra.errors import UserError, written_by_us
from infra.settings import Settings


def generate(
    settings: Settings, subjects: Sequence[Path], prompt: str, seed: int, out: Path, release: str = "production"
) -> Path:
    """Draw `prompt` with the people of the photos and write the picture; without photos the prior draws.

    The photos are bound to the prompt's person words in order. `release` is a name, a number, an id or a folder.
    Raises UserError for an unreadable photo, a prompt with too few person words, an unknown release.
    """
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f'The picture "{out}" cannot be written: give --out a name that ends in .png, .jpg or .webp.')
    with written_by_us(out, "give --out another name"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    words = words_for(prompt, len(subjects))
    photos = [_read(path, settings) for path in subjects]
    adapter = adapter_files(settings, release) if photos else None

    from flows.painting import Painter

    painter = Painter.open(settings, adapter)
    bound: dict[str, list[Any]] = {word: [] for word in words}
    for word, photo, path in zip(words, photos, subjects, strict=True):
        bound[word].append(painter.crop(photo, f'"{path}"'))
    picture = painter.draw([prompt], [bound], [seed])[0].picture
    with written_by_us(out, "give --out another name"):
        picture.save(out)
    return out


def words_for(prompt: str, count: int) -> list[str]:
    """The word for each of `count` subjects, in the prompt's order; UserError where the prompt names too few people."""
    from preprocessing.binding import person_words

    words = [word.text.lower() for word in person_words(prompt)]
    if count > len(words):
        raise UserError(
            f'The prompt "{prompt}" has {len(words)} words such as "man" or "woman" for {count} photos: add some.'
        )
    return words[:count]


def adapter_files(settings: Settings, release: str) -> Mapping[str, bytes] | Path:
    """A release's adapter: the folder itself where `release` is one, else its verified files from the store."""
    folder = Path(release).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[0-9a-z-]+", release):
        raise UserError(f'There is no folder "{release}": give a release\'s name, number or id, or a pulled folder.')
    releases = Run(settings).releases
    found = releases.resolve(release)
    return {name: releases.read(found, name) for name in ("adapter.safetensors", "adapter_config.json")}


def _read(path: Path, settings: Settings) -> Any:
    from preprocessing.faces import FaceDetector
    from preprocessing.photos import PhotoRefused, decode, read_bytes, square

    try:
        photo = decode(read_bytes(path), settings.ingest.min_side, settings.ingest.max_pixels)
    except PhotoRefused as refusal:
        detail = f" ({refusal.detail})" if refusal.detail else ""
        raise UserError(f'The photo "{path}" cannot be used: {refusal.reason.sentence}{detail}') from refusal
    side = settings.ingest.pixels
    if photo.size == (side, side):
        return photo
    return square(photo, FaceDetector().detect(photo), side)[0]
