"""An evaluation's pictures: drawn by actors batch by batch, and every batch kept as soon as it is drawn.

    {folder}/drawn/{batch}.tar    a batch: each picture with its cell and router map
    {folder}/pictures.json        which batches are the evaluation, and whose pictures each has; once all are there

So an evaluation that is killed and started again draws only the batches that are missing, two that draw the same agree
on one list, and nobody ever holds more of the 13,000 pictures of the whole protocol (5 GB) than those of one prompt. A
batch is named by its cells, and a picture's noise by its seed alone (`Painter.draw`): who draws it, when and after what
does not matter. Earlier versions left all pictures in one `pictures.tar`; it is read as it is.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from evaluation import protocol
from evaluation.protocol import Cell, Subject
from flows import artifacts
from flows.run import Run, digest
from flows.workers import PaintWorker
from infra.ray_session import map_shards
from infra.settings import Settings
from infra.storage import ObjectStore
from preprocessing.shards import decode_npy, encode_json, encode_npy, read_tar, write_tar

if TYPE_CHECKING:
    from flows.contenders import DrawingModel

INDEX, OLD_PICTURES = "pictures.json", "pictures.tar"
Drawn = tuple[Cell, bytes, Any]
"""A cell, its picture as PNG, and its router map where one was recorded."""
Kept = list[tuple[str, list[Cell]]]
"""An evaluation's tars: where each is in the store, and the cells in it."""


def draw_evaluation(run: Run, model: "DrawingModel", people: Sequence[Mapping[str, Any]], folder: str) -> int:
    """Draw what the folder lacks, until all of it is there; how many batches were drawn now. Needs Ray.

    A model that draws nobody draws the prior's pictures alone.
    """
    if is_drawn(run, folder):
        _remove_others(run, folder)
        return 0
    items = batches_of(run.settings, people, folder, model.draws_subjects)
    there = set(run.store.list(f"{folder}/drawn/"))
    missing = [item for item in items if item["key"] not in there]
    if len(missing) < len(items):
        done = len(items) - len(missing)
        artifacts.note(f"evaluate: {done} of {len(items)} batches of pictures were drawn before and are kept.")
    photos = {one["name"]: one["photos"][0] for one in people}
    arguments = (run.store, run.settings, model, photos)
    gpus = run.settings.ray.gpus_per_worker
    results = map_shards(PaintWorker, missing, run.settings.evaluate.workers, arguments, gpus=gpus)
    with closing(results):
        for _ in artifacts.tracked(results, len(missing), "evaluate: batches"):
            pass
    index = [
        {"tar": item["key"].removeprefix(f"{folder}/"), "cells": [one.model_dump(mode="json") for one in item["cells"]]}
        for item in items
    ]
    # Where somebody else was quicker, perhaps with batches of another size, theirs are the evaluation.
    run.store.create(f"{folder}/{INDEX}", encode_json({"batches": index}))
    _remove_others(run, folder)
    return len(missing)


def is_drawn(run: Run, folder: str) -> bool:
    """Whether all of an evaluation's pictures are there."""
    return any(run.store.exists(f"{folder}/{name}") for name in (INDEX, OLD_PICTURES))


def pictures_address(run: Run, folder: str) -> str:
    """Where people find the pictures of an evaluation."""
    return run.store.uri(f"{folder}/drawn" if run.store.exists(f"{folder}/{INDEX}") else f"{folder}/{OLD_PICTURES}")


def kept(run: Run, folder: str) -> Kept:
    """Where a drawn evaluation's pictures are, in the protocol's order."""
    if not run.store.exists(f"{folder}/{INDEX}"):
        old = f"{folder}/{OLD_PICTURES}"
        return [(old, [cell for cell, _, _ in unpacked(run.store.get(old))])]
    batches = json.loads(run.store.get(f"{folder}/{INDEX}"))["batches"]
    return [(f"{folder}/{one['tar']}", [Cell.model_validate(cell) for cell in one["cells"]]) for one in batches]


def batches_of(
    settings: Settings, people: Sequence[Mapping[str, Any]], folder: str, with_subjects: bool = True
) -> list[dict[str, Any]]:
    """Everything that there is to draw, as `PaintWorker` takes it: {"cells", "key": where they are kept}."""
    evaluate, subjects = settings.evaluate, without_photos(people)
    kinds = (protocol.prior_cells, protocol.cells) if with_subjects else (protocol.prior_cells,)
    return [
        {"cells": batch, "key": f"{folder}/drawn/{digest([cell.model_dump(mode='json') for cell in batch])}.tar"}
        for kind in kinds
        for batch in protocol.batches(kind(evaluate, subjects), evaluate.batch_size)
    ]


def as_the_prior_drew(cells: Sequence[Cell], drawn: Sequence[Drawn]) -> list[Drawn]:
    """The prior's pictures, each once more for every one of these cells of which it would be: how the prior itself is
    measured."""
    pngs = {cell: png for cell, png, _ in drawn}
    return [*drawn, *((cell, pngs[cell.prior], None) for cell in cells if cell.prior in pngs)]


def read_drawn(run: Run, folder: str, wanted: Callable[[Cell], bool] = lambda cell: True) -> Iterator[Drawn]:
    """An evaluation's drawings of the cells that are wanted, as they are kept; a tar without one is not fetched."""
    return read_from(run.store, kept(run, folder), wanted)


def read_from(store: ObjectStore, tars: Kept, wanted: Callable[[Cell], bool] = lambda cell: True) -> Iterator[Drawn]:
    """The drawings of the cells that are wanted, tar by tar."""
    for key, cells in tars:
        if any(map(wanted, cells)):
            yield from (one for one in unpacked(store.get(key)) if wanted(one[0]))


def read_pictures(
    run: Run, folder: str, wanted: Callable[[Cell], bool] = lambda cell: True
) -> list[tuple[Any, Any, Any]]:
    """An evaluation's drawings of the cells that are wanted: (Cell, picture, router map or None), as drawn."""
    from preprocessing.shards import decode_picture

    return [(cell, decode_picture(png), router) for cell, png, router in read_drawn(run, folder, wanted)]


def packed(drawn: Iterable[Drawn]) -> bytes:
    """Drawings as a tar."""
    return write_tar((f"{number:06d}", _parts(*one)) for number, one in enumerate(drawn))


def unpacked(tar: bytes) -> Iterator[Drawn]:
    """The drawings of a tar that `packed` wrote."""
    for sample in read_tar(tar):
        router = sample.parts.get("router.npy")
        picture = bytes(sample.parts["png"])
        yield Cell.model_validate(sample.json()), picture, None if router is None else decode_npy(router)


def without_photos(people: Sequence[Mapping[str, Any]]) -> list[Subject]:
    """People as `read_people` has them, as the protocol asks for them."""
    return [Subject(one["name"], one["word"], None) for one in people]  # type: ignore[arg-type]


def _parts(cell: Cell, png: bytes, router: Any) -> dict[str, bytes]:
    parts = {"json": encode_json(cell.model_dump(mode="json")), "png": png}
    return parts if router is None else parts | {"router.npy": encode_npy(router)}


def _remove_others(run: Run, folder: str) -> None:
    """What lies in `drawn` and is not the evaluation: batches of another size that were begun, or that came late."""
    mine = {key for key, _ in kept(run, folder)}
    for key in run.store.list(f"{folder}/drawn/"):
        if key not in mine:
            run.store.delete(key)
