"""Draw an arm's pictures and measure them with the project's own instruments; every result is one JSON file."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.identity import embed_everybody
from evaluation.instruments import Instruments
from evaluation.observations import photographed
from evaluation.protocol import Cell, Drawing, Drawings, batches, cells, prior_cells
from evaluation.protocol import Subject as Person
from evaluation.scoring import real_photos, score_pictures
from evaluation.subject_mixing import subject_mixing
from flows.judging import open_instruments
from flows.painting import Painter, as_subjects, locate_people, open_image_encoder, open_pipeline
from infra.settings import Settings
from moa_model import MoAAdapter
from preprocessing.segmentation import open_segmenter
from tests.benchmarks.claims.arms import SampledAdapter
from tests.benchmarks.claims.ip_adapter import IPAdapterPainter
from tests.benchmarks.claims.masked import Draws, KeptByMask
from tests.benchmarks.claims.plan import DEFAULT, PAIR_PROMPTS, PAIR_SEEDS, PRIOR, Arm, Drawn, Sampling
from tests.benchmarks.claims.plan import Protocol as CellSet
from tests.benchmarks.claims.training import kept_folder
from tests.benchmarks.claims.world import World

_MOST_PEOPLE = 4  # of one picture that are held against the references: more are specks


def open_painter(settings: Settings, folder: Path | None, arm: Arm, sampling: Sampling) -> Draws:
    """A trained arm, ready to draw; `folder` holds its weights (None: the prior)."""
    if sampling.scene == "mask":
        free = open_painter(settings, folder, arm, replace(sampling, scene=""))
        prior = Painter.open(settings, None)
        batch = 1 if arm.kind == "ip-adapter" else settings.evaluate.batch_size
        return KeptByMask(free, prior, locate_people(prior.segmenter), batch)
    if arm.kind == "ip-adapter":
        assert folder is not None
        return IPAdapterPainter(settings, folder, sampling.strength)
    kept = settings.evaluate.model_copy(update={"keep_scene": sampling.scene == "router"})
    settings = settings.model_copy(update={"evaluate": kept})
    pipe = open_pipeline(settings.models)
    adapter: MoAAdapter | None = None
    if folder is not None:
        adapter = SampledAdapter.open(folder, arm, sampling)
        adapter.attach(pipe, image_encoder=open_image_encoder(settings.models))
    return Painter(settings, pipe, adapter, open_segmenter(settings.models.segmenter, settings.segment))


class Gallery:
    """All results of a benchmark's folder."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self._crops: dict[str, Image.Image] = {}

    # ---- what is there

    def path(self, item: Drawn, ending: str = ".json") -> Path:
        """Where a result lies."""
        return self.folder / "results" / f"{item.name}-{item.key()}{ending}"

    def read(self, item: Drawn) -> dict[str, Any] | None:
        """A result, or None while there is none."""
        path = self.path(item)
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def pictures(self, item: Drawn) -> dict[Cell, Drawing] | None:
        """The pictures that a result was measured on, where they were kept."""
        path = self.path(item, ".npz")
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as kept:
            pixels = kept["pictures"]
            routers = list(kept["routers"]) if "routers" in kept else [None] * len(pixels)
        settings = self.world.with_protocol(item.protocol)
        drawn = self._cells(item, settings, self.subjects(item.protocol))
        return {
            cell: Drawing(Image.fromarray(picture), router)
            for cell, picture, router in zip(drawn, pixels, routers, strict=True)
        }

    # ---- making it

    @cached_property
    def instruments(self) -> Instruments:
        return open_instruments(self.world.settings)

    @cached_property
    def _cutter(self) -> Painter:
        settings = self.world.settings
        return Painter(settings, None, None, open_segmenter(settings.models.segmenter, settings.segment))

    def subjects(self, protocol: CellSet) -> list[Person]:
        """The protocol's people."""
        return as_subjects(self.world.people(protocol))

    def crop(self, person: Person) -> Image.Image:
        """A person cut out of their reference, as in training."""
        if person.name not in self._crops:
            self._crops[person.name] = self._cutter.crop(person.reference)
        return self._crops[person.name]

    def measure(self, item: Drawn) -> None:
        """Draw, measure, write; nothing where the result is there."""
        if self.path(item).exists():
            return
        started = time.monotonic()
        settings, people = self.world.with_protocol(item.protocol), self.subjects(item.protocol)
        weights = None
        if item.arm.kind != "prior":
            weights = kept_folder(self.folder, item.arm, item.seed, item.step)
        painter = open_painter(settings, weights, item.arm, item.sampling)
        drawn = self._draw(painter, self._cells(item, settings, people), people, settings.evaluate.batch_size)
        if not item.arm.moa_layer or item.arm.kind not in ("moa", "shipped"):
            drawn = {cell: Drawing(one.picture) for cell, one in drawn.items()}  # no router to speak of
        if item.arm.kind == "prior":
            prior: Drawings = drawn
            release = {cell: drawn[cell.prior] for cell in cells(settings.evaluate, people)}
        else:
            prior, release = self._prior(item.protocol), drawn
        photos = photographed(people, self.instruments)
        scores = score_pictures(release, prior, photos, settings.evaluate, self.instruments)
        columns = {name: scores.column(name) for name in scores.values} | {"identity_real_photos": real_photos(photos)}
        result = {
            "arm": item.arm.name,
            "seed": item.seed,
            "step": item.step,
            "sampling": asdict(item.sampling),
            "protocol": asdict(item.protocol),
            "pictures": len(release),
            "columns": {name: _means(column) for name, column in columns.items()},
            "pairs": self._pairs(item, painter, people) if item.protocol.pairs else {},
            "seconds": 0.0,
        }
        result["seconds"] = round(time.monotonic() - started, 1)
        self.path(item).parent.mkdir(parents=True, exist_ok=True)
        _write_pictures(self.path(item, ".npz"), drawn)
        _write(self.path(item), json.dumps(result, indent=1).encode())

    def _cells(self, item: Drawn, settings: Settings, people: Sequence[Person]) -> list[Cell]:
        return (prior_cells if item.arm.kind == "prior" else cells)(settings.evaluate, people)

    def _prior(self, protocol: CellSet) -> Drawings:
        item = Drawn(PRIOR, 0, 0, DEFAULT, protocol)
        self.measure(item)
        pictures = self.pictures(item)
        assert pictures is not None
        return pictures

    def _draw(self, painter: Draws, todo: Sequence[Cell], people: Sequence[Person], size: int) -> dict[Cell, Drawing]:
        by_name = {person.name: person for person in people}
        drawn: dict[Cell, Drawing] = {}
        for batch in batches(todo, size):
            subjects = [{} if cell.subject is None else {cell.word: self.crop(by_name[cell.subject])} for cell in batch]
            pictures = painter.draw([cell.text for cell in batch], subjects, [cell.seed for cell in batch])
            drawn.update(zip(batch, pictures, strict=True))
        return drawn

    def _pairs(self, item: Drawn, painter: Draws, people: Sequence[Person]) -> dict[str, dict[str, float]]:
        """Two people in one picture: per pair the mean over prompts and seeds."""
        columns: dict[str, dict[str, list[float]]] = {"minimum_identity": {}, "separation": {}, "two_people": {}}
        settings = self.world.settings
        couples = pairs(people, item.protocol.pairs)
        todo = [(couple, prompt, seed) for prompt in PAIR_PROMPTS for seed in PAIR_SEEDS for couple in couples]
        pictures: list[Image.Image] = []
        size = settings.evaluate.batch_size
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            subjects = [
                {} if item.arm.kind == "prior" else {person.word: self.crop(person) for person in couple}
                for couple, _, _ in part
            ]
            drawings = painter.draw([prompt for _, prompt, _ in part], subjects, [seed for _, _, seed in part])
            pictures += [drawing.picture for drawing in drawings]
        references = {person.name: vector for person, vector in zip(people, self._references(people), strict=True)}
        for (couple, _, _), vectors_PD in zip(todo, self._everybody(pictures), strict=True):
            name = " + ".join(person.name for person in couple)
            mixing = subject_mixing(vectors_PD, np.stack([references[person.name] for person in couple]))
            columns["minimum_identity"].setdefault(name, []).append(mixing.minimum_identity)
            columns["two_people"].setdefault(name, []).append(float(len(vectors_PD) == 2))
            if mixing.separation is not None:
                columns["separation"].setdefault(name, []).append(mixing.separation)
        return {name: _means(column) for name, column in columns.items()}

    def _references(self, people: Sequence[Person]) -> list[np.ndarray]:
        return [vectors_PD[0] for vectors_PD in self._everybody([person.reference for person in people])]

    def _everybody(self, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
        """Every person of each picture as a unit vector, the largest first."""
        found = [people[:_MOST_PEOPLE] for people in self.instruments.locate(pictures)]
        return embed_everybody(pictures, found, self.instruments.identity)


def pairs(people: Sequence[Person], count: int) -> list[tuple[Person, Person]]:
    """`count` different couples of a man and a woman, everybody about equally often."""
    men = [person for person in people if person.word == "man"]
    women = [person for person in people if person.word == "woman"]
    if not men or not women:
        return []
    side = min(len(men), len(women))
    return [(men[k % side], women[(k + k // side) % side]) for k in range(min(count, side * side))]


def _means(column: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in column.items() if len(values)}


def _write_pictures(path: Path, drawn: Drawings) -> None:
    arrays = {"pictures": np.stack([np.asarray(one.picture.convert("RGB")) for one in drawn.values()])}
    routers = [one.router for one in drawn.values()]
    if all(router is not None for router in routers):
        arrays["routers"] = np.stack([np.asarray(router, np.float16) for router in routers])
    part = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez_compressed(part, **arrays)
    os.replace(part, path)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{os.getpid()}-{path.name}")
    part.write_bytes(data)
    os.replace(part, path)
