"""All that is looked up once per picture or photo: who is in it, and what the identity network and CLIP say of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from evaluation.background import background_difference
from evaluation.identity import embed_everybody
from evaluation.instruments import Instruments
from evaluation.people import Found, Locate
from evaluation.protocol import Cell, Drawing, Drawings, Subject

Photographed = Mapping[str, Float[np.ndarray, "P D"]]
"""By subject, the person on each of their photos as a unit vector, the reference first."""


@dataclass(frozen=True)
class Observations:
    """`cells` are the release's, sorted; every mapping by cell has those and the prior's.

    `identities`: of the first people of the picture, at most as many as the prompt names, one unit vector each.
    """

    cells: list[Cell]
    drawings: dict[Cell, Drawing]
    people: dict[Cell, Sequence[Found]]
    identities: dict[Cell, Float[np.ndarray, "P D"]]
    clips: dict[Cell, Float[np.ndarray, " D"]]
    references: dict[str, Float[np.ndarray, " D"]]

    @classmethod
    def of(cls, release: Drawings, prior: Drawings, photos: Photographed, tools: Instruments) -> "Observations":
        """Look at every picture; `photos` are what `photographed` made of the subjects."""
        ordered = sorted(release, key=lambda cell: (cell.is_pair, cell.names, cell.prompt, cell.seed))
        drawings = {cell: release[cell] for cell in ordered}
        drawings |= {cell.prior: prior[cell.prior] for cell in ordered}
        pictures = [drawing.picture for drawing in drawings.values()]
        people = list(_in_batches(tools.locate, pictures))
        faces = people if tools.locate_face is None else list(_in_batches(tools.locate_face, pictures))
        wanted = [found[: 2 if cell.is_pair else 1] for cell, found in zip(drawings, faces, strict=True)]

        return cls(
            cells=ordered,
            drawings=drawings,
            people=dict(zip(drawings, people, strict=True)),
            identities=dict(zip(drawings, embed_everybody(pictures, wanted, tools.identity), strict=True)),
            clips=dict(zip(drawings, tools.prompts.images(pictures), strict=True)),
            references={name: row[0] for name, row in photos.items()},
        )

    def difference(self, first: Cell, second: Cell) -> float | None:
        """What `background_difference` says of two pictures, in grey levels."""
        return background_difference(
            self.drawings[first].picture, self.drawings[second].picture, self.people[first], self.people[second]
        )

    def area(self, cell: Cell) -> float:
        """The first person's share of the picture, 0 where there is nobody."""
        found = self.people[cell]
        return float(found[0].region(self.drawings[cell].picture).mean()) if found else 0.0

    def first_people(self, cells: Sequence[Cell]) -> Float[np.ndarray, "N D"]:
        """The first person of each picture; zeros where there is nobody."""
        width = len(next(iter(self.references.values())))
        nobody = np.zeros(width, np.float32)
        return np.stack([vectors[0] if len(vectors := self.identities[cell]) else nobody for cell in cells])


def photographed(subjects: Sequence[Subject], tools: Instruments) -> Photographed:
    """Look at the subjects' photos."""
    by_face = tools.locate_face is not None
    photos = [
        photo
        for subject in subjects
        for photo in (subject.original if by_face and subject.original else subject.reference, *subject.others)
    ]
    located = _in_batches(tools.locate_face or tools.locate, photos)
    # Unlike a drawing, a photo always shows its subject: where the detector fails, the whole photo is compared. Of
    # references in which no face is found, `missing_references` tells beforehand.
    shown = [(found or [_everything(photo)])[:1] for photo, found in zip(photos, located, strict=True)]
    rows = iter(embed_everybody(photos, shown, tools.identity))
    return {subject.name: np.concatenate([next(rows) for _ in (0, *subject.others)]) for subject in subjects}


def missing_references(subjects: Sequence[Subject], locate_face: Locate) -> list[str]:
    """The subjects in whose reference photo no face is found: FastComposer's protocol cannot measure them."""
    photos = [subject.original or subject.reference for subject in subjects]
    return [one.name for one, found in zip(subjects, _in_batches(locate_face, photos), strict=True) if not found]


def _in_batches(locate: Locate, pictures: Sequence[Image.Image], size: int = 16) -> Iterator[Sequence[Found]]:
    for start in range(0, len(pictures), size):
        yield from locate(pictures[start : start + size])


def _everything(photo: Image.Image) -> Found:
    return Found(box=(0.0, 0.0, float(photo.width), float(photo.height)))
