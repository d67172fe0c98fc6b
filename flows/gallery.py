"""The pictures in moa_model/applications/README.md, drawn with the shipped release 1 and the zoo's models."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
from PIL import Image

from flows import applications as drawn
from flows.applications import Release
from flows.artifacts import tracked
from flows.sheets import Cell, below, captioned
from infra.model_files import ZOO
from infra.settings import load_settings
from moa_model import applications
from preprocessing.sources.paperfolk_drawing import draw as paper
from preprocessing.sources.paperfolk_pose import draw_pose
from preprocessing.sources.paperfolk_world import Picture, Word, picture_at, random_identity, random_picture

# Close-ups of people who are in no training picture: name, word, number among those drawn here.
PEOPLE: tuple[tuple[str, Word, int], ...] = (
    ("Ben", "man", 2),
    ("Carl", "man", 3),
    ("Dan", "man", 1),
    ("Ann", "woman", 50),
    ("Eve", "woman", 51),
)
_FRAME = 144  # side of a film's pictures
_HELD_OUT = 2  # the seed of a world that nobody trains on


def write_gallery(folder: Path) -> list[Path]:
    """Draw every picture anew; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        photos = {name: Path(place, f"{name}.png") for name, _, _ in PEOPLE}
        for name, word, number in PEOPLE:
            portrait(number, word).save(photos[name])
        release = Release(load_settings("demo", Path(place)), str(ZOO / "release-1"))
        pictures = _pictures(release, photos, Path(place))
        written = []
        for name, draw in tracked(pictures.items(), len(pictures), "pictures"):
            written.append(folder / f"{name}.png")
            draw().save(written[-1], optimize=True)
    return written


def portrait(number: int, word: Word) -> Image.Image:
    """A close-up of somebody."""
    rng = np.random.default_rng([4040, number])
    identity = random_identity(rng)
    while identity.word != word:
        identity = random_identity(rng)
    return paper(random_picture(rng, (identity,), close=1.0)).image


def _pictures(release: Release, photos: dict[str, Path], place: Path) -> dict[str, Callable[[], Image.Image]]:
    ann, ben, carl, dan, eve = (photos[name] for name in ("Ann", "Ben", "Carl", "Dan", "Eve"))
    beach, garden = "a photo of a man holding roses on the beach", "a photo of a man in a garden"
    cast = [f"Ann=woman:{ann}", f"Carl=man:{carl}", "Fred=man"]
    sentences = [
        "a photo of Ann in a garden",
        "a photo of Carl and Ann in the snow",
        "a photo of Carl holding a book in the forest",
        "a photo of Fred in the desert",
    ]
    return {
        "swap": lambda: drawn.swap(release, [ben, carl, dan], beach, 3),
        "browsing": lambda: drawn.browse(release, "a photo of a man holding a cat in the forest", range(12), 4, [ben]),
        "morph": lambda: drawn.morph(release, (ben, carl), garden, 5, 5).strip(_FRAME),
        "time-lapse": lambda: below(
            drawn.time_lapse(release, dan, "a photo of a man in the snow", "woman", 6, 5).strip(_FRAME),
            drawn.time_lapse(release, ann, "a photo of a woman in the snow", "man", 6, 5).strip(_FRAME),
        ),
        "real-photo": lambda: below(_real(release, place, 0, ben), _real(release, place, 22, eve)),
        "story": lambda: drawn.story(release, cast, sentences, 0),
        "router-maps": lambda: drawn.routers(release, ben, "a photo of a man on the beach", 3),
        "controlnet": lambda: _controlled(release, ben),
        "style": lambda: _styled(release, [ben, carl]),
    }


def _real(release: Release, place: Path, index: int, subject: Path) -> Image.Image:
    picture = picture_at(_HELD_OUT, index)
    photo = place / f"real-{index}.png"
    paper(picture).image.save(photo)
    return drawn.swap_in_photo(release, photo, subject, picture.caption)


def _controlled(release: Release, subject: Path) -> Image.Image:
    """Two held-out poses: by the prior without and with the ControlNet, and with somebody in the pose."""
    (photo,) = release.photos([subject])
    painter = release.open()
    assert painter.adapter is not None
    controlled = applications.with_control(painter.pipe, str(ZOO / "controlnet"))
    cells: list[Cell] = []
    poses: list[Picture] = [picture_at(_HELD_OUT, index) for index in (2, 4)]
    for number, picture in enumerate(poses):
        pose, seed = draw_pose(picture), 5 + number
        call = {"prompt": picture.caption, "seed": seed, **painter.call}
        free = applications.draw(painter.pipe, painter.adapter, subjects={}, **call)
        led = applications.draw(controlled, painter.adapter, subjects={}, image=pose, **call)
        crop = painter.crop(photo)
        person = applications.draw(controlled, painter.adapter, subjects={"man": crop}, image=pose, **call)
        named = [("pose", pose), (f"prior, seed {seed}", free), ("prior in the pose", led), (subject.stem, photo)]
        cells += [*named, (f"{subject.stem} in the pose", person)]
    return captioned(cells, 5)


def _styled(release: Release, subjects: list[Path]) -> Image.Image:
    """The prior and two people, without and with the style LoRA."""
    photos = release.photos(subjects)
    painter = release.open()
    assert painter.adapter is not None
    cells: list[Cell] = [("", None), *((path.stem, photo) for path, photo in zip(subjects, photos, strict=True))]
    casts = [{}, *({"man": painter.crop(photo)} for photo in photos)]
    prompt = "a photo of a man holding roses on the beach"
    plain = applications.swap(painter.pipe, painter.adapter, prompt, casts, 3, **painter.call)
    with applications.styled(painter.pipe, ZOO / "style-lora", strength=0.8):
        other = applications.swap(painter.pipe, painter.adapter, prompt, casts, 3, **painter.call)
    names = ["the prior", *(path.stem for path in subjects)]
    cells += list(zip(names, plain, strict=True))
    cells += [(f"{name}, LoRA on the prior", picture) for name, picture in zip(names, other, strict=True)]
    return captioned(cells, len(casts))
