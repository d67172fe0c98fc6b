"""`moa generate`: one picture of somebody, from a release and their photo. No Ray, no Prefect."""

import errno
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from flows.run import Run
from infra.errors import UserError, written_by_us
from infra.pulling import pull_from
from infra.settings import ModelReference, Settings

_ANOTHER_NAME = "give --out another name"


def generate(
    settings: Settings,
    subjects: Sequence[Path],
    prompt: str,
    seed: int,
    out: Path,
    release: str = "production",
    control: Path | None = None,
    controlnet: str = "zoo:controlnet",
    lora: str | None = None,
    lora_strength: float = 1.0,
) -> Path:
    """Draw `prompt` with the people of the photos and write the picture; without photos the prior draws.

    The photos are bound to the prompt's person words in order. `release` is a name, a number, an id or a folder.
    `control` is a picture for the ControlNet `controlnet`; `lora` a style for the prior branch.
    Raises UserError for an unreadable photo, a prompt with too few person words, an unknown release or model.
    """
    check_writable(out)
    words = words_for(prompt, len(subjects))
    photos = [read_photo(path, settings) for path in subjects]
    pose = None if control is None else read_picture(control)
    adapter = adapter_files(settings, release) if photos else None

    from flows.painting import Painter
    from moa_model.applications import styled, with_control

    painter = Painter.open(settings, adapter)
    bound: dict[str, list[Any]] = {word: [] for word in words}
    for word, photo, path in zip(words, photos, subjects, strict=True):
        bound[word].append(painter.crop(photo, f'"{path}"'))
    more: dict[str, Any] = {}
    if pose is not None:
        where, options = _named_model(controlnet, "controlnet")
        painter.pipe = with_control(painter.pipe, where, **options)
        more = {"image": [pose]}
    style, options = _named_model(lora, "lora") if lora else ("", {})
    with styled(painter.pipe, style, lora_strength, **options) if lora else nullcontext():
        picture = painter.draw([prompt], [bound], [seed], **more)[0].picture
    return write_picture(picture, out)


def check_writable(out: Path, endings: Sequence[str] = (".png", ".jpg", ".jpeg", ".webp")) -> None:
    """Refuse, before anything is drawn, a file that the picture cannot go to: UserError."""
    if out.suffix.lower() not in endings:
        shown = ", ".join(ending for ending in endings if ending != ".jpeg")
        first, _, last = shown.rpartition(", ")
        raise UserError(f'The picture "{out}" cannot be written: give --out a name that ends in {first} or {last}.')
    with written_by_us(out, _ANOTHER_NAME):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")


def write_picture(picture: Any, out: Path) -> Path:
    """Write a picture; UserError where the file system refuses."""
    with written_by_us(out, _ANOTHER_NAME):
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


def adapter_files(settings: Settings, release: str) -> Path:
    """A release's adapter: the folder itself where `release` is one, else its verified files in the cache."""
    folder = Path(release).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[0-9a-z@-]+", release):
        raise UserError(f'There is no folder "{release}": give a release\'s name, number or id, or a pulled folder.')
    publish = settings.publish
    return pull_from(Run(settings).store, release, publish.model, None, key=publish.verify_key).folder


def read_photo(path: Path, settings: Settings) -> Any:
    """A photo as ingest would take it: decoded, upright, square around its face, at the settings' size. UserError."""
    from preprocessing.faces import FaceDetector
    from preprocessing.photos import square

    photo = read_picture(path, settings.ingest.min_side, settings.ingest.max_pixels)
    side = settings.ingest.pixels
    if photo.size == (side, side):
        return photo
    return square(photo, FaceDetector().detect(photo), side)[0]


def read_picture(path: Path, min_side: int = 1, max_pixels: int = 100_000_000) -> Any:
    """Any picture, decoded; UserError with ingest's reason where it cannot be used."""
    from preprocessing.photos import PhotoRefused, decode, read_bytes

    try:
        return decode(read_bytes(path), min_side, max_pixels)
    except PhotoRefused as refusal:
        detail = f" ({refusal.detail})" if refusal.detail else ""
        raise UserError(f'The photo "{path}" cannot be used: {refusal.reason.sentence}{detail}') from refusal


def _named_model(name: str, kind: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for "zoo:NAME", a folder, a .safetensors file, or a hub's "owner/name@COMMIT"."""
    from infra.model_files import local_folder, resolve

    location, _, revision = name.partition("@")
    if location.endswith(".safetensors"):
        return location, {}
    reference = ModelReference(location=location, revision=revision or None, backend=kind)
    if local_folder(reference) is None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(f'There is no folder "{name}": give one, or a hub id as owner/name@COMMIT (40 hex digits).')
    return resolve(reference, kind)
