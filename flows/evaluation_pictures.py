"""An evaluation's pictures: drawn by actors batch by batch, and every batch kept as soon as it is drawn.

    {folder}/drawn/{batch}.tar    a finished batch: each picture with its cell and router map
    {folder}/pictures.tar         all of them, once there are all; the batches then go

So an evaluation that is killed and started again draws only the batches that are missing. A batch is named by its
cells, and a picture's noise by its seed alone (`Painter.draw`): who draws it, when and after what does not matter.
"""

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
from preprocessing.shards import decode_npy, encode_json, encode_npy, read_tar, write_tar

if TYPE_CHECKING:
    from flows.contenders import DrawingModel

PICTURES = "pictures.tar"
Drawn = tuple[Cell, bytes, Any]
"""A cell, its picture as PNG, and its router map where one was recorded."""


def draw_evaluation(run: Run, model: "DrawingModel", people: Sequence[Mapping[str, Any]], folder: str) -> int:
    """Draw what the folder lacks, and make pictures.tar of all; how many batches were drawn now. Needs Ray.

    A model that draws nobody draws the prior's pictures alone.
    """
    if run.store.exists(f"{folder}/{PICTURES}"):
        _remove_batches(run, folder)
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
    drawn = [one for item in items for one in unpacked(run.store.get(item["key"]))]
    drawn.sort(key=lambda one: one[0].model_dump_json())
    run.store.put(f"{folder}/{PICTURES}", packed(drawn))
    _remove_batches(run, folder)
    return len(missing)


def batches_of(
    settings: Settings, people: Sequence[Mapping[str, Any]], folder: str, with_subjects: bool = True
) -> list[dict[str, Any]]:
    """Everything that there is to draw, as `PaintWorker` takes it: {"cells", "key": where they are kept}."""
    evaluate, subjects = settings.evaluate, _without_photos(people)
    kinds = (protocol.prior_cells, protocol.cells) if with_subjects else (protocol.prior_cells,)
    return [
        {"cells": batch, "key": f"{folder}/drawn/{digest([cell.model_dump(mode='json') for cell in batch])}.tar"}
        for kind in kinds
        for batch in protocol.batches(kind(evaluate, subjects), evaluate.batch_size)
    ]


def as_the_prior_drew(settings: Settings, people: Sequence[Mapping[str, Any]], drawn: Sequence[Drawn]) -> list[Drawn]:
    """The prior's pictures, and each once more for everybody of whom it would be: how the prior itself is measured."""
    pngs = {cell: png for cell, png, _ in drawn}
    everybody = protocol.cells(settings.evaluate, _without_photos(people))
    return [*drawn, *((cell, pngs[cell.prior], None) for cell in everybody)]


def read_drawn(run: Run, folder: str) -> Iterator[Drawn]:
    """An evaluation's drawings as they are kept."""
    return unpacked(run.store.get(f"{folder}/{PICTURES}"))


def read_pictures(
    run: Run, folder: str, wanted: Callable[[Cell], bool] = lambda cell: True
) -> list[tuple[Any, Any, Any]]:
    """An evaluation's drawings of the cells that are wanted: (Cell, picture, router map or None), as drawn."""
    from preprocessing.shards import decode_picture

    drawn = read_drawn(run, folder)
    return [(cell, decode_picture(png), router) for cell, png, router in drawn if wanted(cell)]


def packed(drawn: Iterable[Drawn]) -> bytes:
    """Drawings as a tar."""
    return write_tar((f"{number:06d}", _parts(*one)) for number, one in enumerate(drawn))


def unpacked(tar: bytes) -> Iterator[Drawn]:
    """The drawings of a tar that `packed` wrote."""
    for sample in read_tar(tar):
        router = sample.parts.get("router.npy")
        yield Cell.model_validate(sample.json()), sample.parts["png"], None if router is None else decode_npy(router)


def _without_photos(people: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [Subject(one["name"], one["word"], None) for one in people]  # type: ignore[arg-type]


def _parts(cell: Cell, png: bytes, router: Any) -> dict[str, bytes]:
    parts = {"json": encode_json(cell.model_dump(mode="json")), "png": png}
    return parts if router is None else parts | {"router.npy": encode_npy(router)}


def _remove_batches(run: Run, folder: str) -> None:
    for key in run.store.list(f"{folder}/drawn/"):
        run.store.delete(key)
    run.store.sweep(f"{folder}/drawn")
