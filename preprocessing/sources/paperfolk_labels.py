"""Paperfolk as arrays with every label: what the demo's models are trained and scored on."""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from typing import Any

import numpy as np

from preprocessing.sources.paperfolk_drawing import PARTS, SUPERSAMPLING, draw
from preprocessing.sources.paperfolk_world import Picture, picture_at, random_identity, random_picture

PATCH = 8  # pixels


def _label(job: tuple[Picture, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, list[str], list[list[str]]]:
    picture, pixels = job
    drawing = draw(picture, pixels, parts=True)
    assert drawing.parts is not None
    grid, cell = pixels // PATCH, PATCH * SUPERSAMPLING
    cells = drawing.parts.reshape(grid, cell, grid, cell).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    cover = np.stack([(cells == part).mean(1) for part in range(len(PARTS))], 1)
    looks = [person.identity.appearance for person in picture.people]
    factors = [[str(value) for value in astuple(person.identity)] for person in picture.people]
    patches = np.round(255 * cover).astype(np.uint8).reshape(grid, grid, len(PARTS))
    return np.asarray(drawing.image), drawing.instances, patches, picture.caption, looks, factors


def labelled(pictures: Iterable[Picture], pixels: int = 64, processes: int = 2) -> dict[str, Any]:
    """Pictures drawn, as the fields of `infra.zoo.pictures.LabelledPictures`."""
    with ProcessPoolExecutor(processes) as pool:
        rows = list(pool.map(_label, ((picture, pixels) for picture in pictures), chunksize=64))
    images, instances, patches, captions, looks, factors = zip(*rows, strict=True)
    return {
        "pixels": np.stack(images),
        "instances": np.stack(instances),
        "patches": np.stack(patches),
        "captions": list(captions),
        "looks": list(looks),
        "factors": list(factors),
    }


def broad(seed: int, count: int) -> list[Picture]:
    """The first `count` pictures of the world `seed`."""
    return [picture_at(seed, index) for index in range(count)]


def twice(seed: int, people: int) -> list[Picture]:
    """Two pictures of each of `people` people, one after the other."""
    pictures = []
    for index in range(people):
        rng = np.random.default_rng([seed, index])
        who = (random_identity(rng),)
        pictures += [random_picture(rng, who), random_picture(rng, who)]
    return pictures
