"""The paper's applications as the commands draw them: photos in, one labelled picture out. No Ray, no Prefect."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import infra.torchvision_ops  # noqa: F401

import torch
from PIL import Image

from flows.generate import adapter_files, read_photo, words_for
from flows.painting import Painter
from flows.sheets import SIDE, Cell, beside, captioned, grid
from infra.errors import UserError
from infra.settings import Settings
from moa_model import applications

_MAP_SIDE, _MAP_COLUMNS = 44, 6
_PHOTO_GUIDANCE = 2.0  # of a real photo: more leads away from it, less leaves the old person


class Release(NamedTuple):
    """Whose experts draw: the settings, and a release's name, number, id or folder."""

    settings: Settings
    name: str = "production"

    def open(self) -> Painter:
        """Pipeline, adapter and segmenter; UserError for an unknown release."""
        return Painter.open(self.settings, adapter_files(self.settings, self.name))

    def photos(self, paths: Sequence[Path]) -> list[Image.Image]:
        return [read_photo(path, self.settings) for path in paths]


class Film(NamedTuple):
    """Drawn frames in their order, and the photos before and after them."""

    before: list[Cell]
    frames: list[Cell]
    after: list[Cell]

    def strip(self, side: int = SIDE) -> Image.Image:
        """All of it in one row."""
        cells = [*self.before, *self.frames, *self.after]
        return captioned(cells, len(cells), side)


def swap(release: Release, subjects: Sequence[Path], prompt: str, seed: int) -> Image.Image:
    """Every subject in the scene of one seed, beside the prior's own picture."""
    (word,) = words_for(prompt, 1)
    photos = release.photos(subjects)
    painter = release.open()
    casts: list[Any] = [{}, *({word: painter.crop(photo)} for photo in photos)]
    scene = painter.scene(prompt, seed)
    drawn = applications.swap(painter.pipe, _adapter(painter), prompt, casts, seed, scene, **painter.call)
    names = [path.stem for path in subjects]
    above: list[Cell] = [("", None), *zip(names, photos, strict=True)]
    return captioned(
        [
            *above,
            ("the prior", drawn[0]),
            *((f"with {name}", picture) for name, picture in zip(names, drawn[1:], strict=True)),
        ],
        len(drawn),
    )


def swap_in_photo(release: Release, photo: Path, subject: Path, prompt: str, replace: int = 1) -> Image.Image:
    """The person of a real photo replaced (of several, the `replace`-th from the left; the others stay)."""
    original, newcomer = release.photos([photo, subject])
    painter = release.open()
    people = painter.everybody(original)
    if not people:
        raise UserError(f'Nobody is seen in the photo "{photo}": take one that shows a person or two.')
    if not 1 <= replace <= len(people):
        raise UserError(f'The photo "{photo}" shows {len(people)} people: --replace is from 1, the leftmost, to that.')
    words = words_for(prompt, len(people))
    bound: dict[str, Any] = {word: [] for word in words}
    for number, (word, (kept, _)) in enumerate(zip(words, people, strict=True), start=1):
        bound[word].append(painter.crop(newcomer) if number == replace else kept)
    adapter = _adapter(painter)
    steps = 2 * release.settings.evaluate.inference_steps  # DDIM is of first order, UniPC is not
    inverted = applications.invert(painter.pipe, original, prompt, steps)
    restored = applications.regenerate(painter.pipe, adapter, inverted, {})
    place = torch.from_numpy(people[replace - 1][1])
    opened = applications.renoised(inverted, place)
    replaced = place if release.settings.evaluate.keep_scene else None
    swapped = applications.regenerate(painter.pipe, adapter, opened, bound, _PHOTO_GUIDANCE, replaced)
    return captioned(
        [("photo", original), ("inverted, restored", restored), (subject.stem, newcomer), ("swapped", swapped)], 4
    )


def browse(
    release: Release, prompt: str, seeds: Sequence[int], pick: int | None = None, subjects: Sequence[Path] = ()
) -> Image.Image:
    """The prior's scenes of many seeds; with `pick` and photos, those people in the picked one."""
    words = words_for(prompt, len(subjects))
    if bool(subjects) != (pick is not None):
        raise UserError("--pick and --subject go together: which scene, and who is put into it.")
    photos = release.photos(subjects)
    painter = release.open() if photos else Painter.open(release.settings, None)
    scenes = applications.browse(painter.pipe, prompt, seeds, **painter.call)
    width = min(len(scenes), 6)
    shown: list[Cell] = [(f"seed {seed}", scene) for seed, scene in scenes.items()]
    if pick is not None:
        bound: dict[str, Any] = {word: [] for word in words}
        for word, photo in zip(words, photos, strict=True):
            bound[word].append(painter.crop(photo))
        picked = painter.scene(prompt, pick)
        drawn = applications.draw(painter.pipe, _adapter(painter), prompt, bound, pick, picked, **painter.call)
        shown += [("", None)] * (-len(shown) % width)
        shown += [(path.stem, photo) for path, photo in zip(subjects, photos, strict=True)]
        shown += [(f"in seed {pick}", drawn)]
    return captioned(shown, width)


def morph(release: Release, subjects: tuple[Path, Path], prompt: str, frames: int, seed: int) -> Film:
    """From one person to the other: photo, `frames` pictures, photo."""
    (word,) = words_for(prompt, 1)
    first, second = release.photos(subjects)
    painter = release.open()
    ends = painter.crop(first), painter.crop(second)
    drawn = applications.morph(
        painter.pipe,
        _adapter(painter),
        prompt,
        word,
        *ends,
        frames=frames,
        seed=seed,
        scene=painter.scene(prompt, seed),
        **painter.call,
    )
    return Film([(subjects[0].stem, first)], [("", frame) for frame in drawn], [(subjects[1].stem, second)])


def time_lapse(release: Release, subject: Path, prompt: str, until: str, frames: int, seed: int) -> Film:
    """One person while the prompt's person word turns into `until`: photo, `frames` pictures."""
    (word,) = words_for(prompt, 1)
    (photo,) = release.photos([subject])
    painter = release.open()
    drawn = applications.time_lapse(
        painter.pipe, _adapter(painter), prompt, (word, until), painter.crop(photo), frames, seed, **painter.call
    )
    labels = [word, *[""] * (frames - 2), until]
    return Film([(subject.stem, photo)], list(zip(labels, drawn, strict=True)), [])


def story(release: Release, cast: Sequence[str], sentences: Sequence[str], seed: int) -> Image.Image:
    """A page: everybody of the cast, then a panel per sentence.

    A member is "Ann=woman:ann.png", or "Ann=woman" for somebody whom the prior draws first.
    """
    members = [_member(text) for text in cast]
    unseen = Image.new("RGB", (1, 1))
    for sentence in sentences:  # a wrong sentence is told before anything is loaded
        applications.told(sentence, {name: applications.Character(word, unseen) for name, word, _ in members})
    photos = {name: release.photos([path])[0] for name, _, path in members if path is not None}
    painter = release.open()
    for number, (name, word, path) in enumerate(members):
        if path is None:
            portrait = f"a photo of a {word} in a studio"
            invented = applications.browse(painter.pipe, portrait, [1000 * (number + 1) + seed], **painter.call)
            photos[name] = next(iter(invented.values()))
    characters = {name: applications.Character(word, painter.crop(photos[name])) for name, word, _ in members}
    keep_scene = release.settings.evaluate.keep_scene
    panels = applications.story(
        painter.pipe, _adapter(painter), sentences, characters, seed, keep_scene, **painter.call
    )
    shown: list[Cell] = [(name, photos[name]) for name, _, _ in members]
    width = max(len(members), min(len(panels), 4))
    shown += [("", None)] * (-len(shown) % width)
    return captioned([*shown, *zip(sentences, panels, strict=True)], width)


def routers(release: Release, subject: Path, prompt: str, seed: int) -> Image.Image:
    """R_1 per block (rows) and timestep (columns), self-attention left and cross-attention right, with the picture."""
    (word,) = words_for(prompt, 1)
    (photo,) = release.photos([subject])
    painter = release.open()
    adapter = _adapter(painter)
    with adapter.recording() as steps:
        cast = {word: painter.crop(photo)}
        scene = painter.scene(prompt, seed)
        drawn = applications.draw(painter.pipe, adapter, prompt, cast, seed, scene, **painter.call)
    maps = applications.router_maps(steps)
    chosen = sorted({round(i * (len(steps) - 1) / (_MAP_COLUMNS - 1)) for i in range(_MAP_COLUMNS)})
    layers = adapter.config.layers
    halves = [[index for index, shape in enumerate(layers) if shape.cross is cross] for cross in (False, True)]
    rows = [
        [applications.heat(maps[step, index]) for index in pair for step in chosen]
        for pair in zip(*halves, strict=True)
    ]
    times = 2 * [f"{steps[step].timestep:.0f}" for step in chosen]
    title = "share of the personalization expert by timestep: self-attention, then cross-attention"
    maps_grid = grid(rows, times, [f"block {number}" for number in range(1, len(rows) + 1)], title, _MAP_SIDE)
    mean = applications.heat(maps.mean(dim=(0, 1)))
    return beside(captioned([(subject.stem, photo), (f"seed {seed}", drawn), ("mean of all maps", mean)], 1), maps_grid)


def _adapter(painter: Painter) -> Any:
    assert painter.adapter is not None, "subjects need an adapter"
    return painter.adapter


def _member(text: str) -> tuple[str, str, Path | None]:
    """("Ann", "woman", path) of "Ann=woman:ann.png"."""
    name, _, rest = text.partition("=")
    word, _, path = rest.partition(":")
    if not name.strip() or not word.strip():
        raise UserError(f'--cast "{text}" is not NAME=WORD:PHOTO: write for example --cast Ann=woman:ann.png.')
    return name.strip(), word.strip(), Path(path) if path else None
