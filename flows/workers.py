"""The Ray actors: each loads its models once, then takes one shard after another.

Shards come from the object store and go back to it; only rows of the catalog travel between processes. Nothing is
visible before its row is committed, so an actor that dies in the middle leaves litter at worst.
"""

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from infra.ray_session import StagedWorker
from infra.settings import (
    BindingSettings,
    CaptionSettings,
    FilterSettings,
    IngestSettings,
    ModelReference,
    ModelsSettings,
    SegmentSettings,
    Settings,
    ShardSettings,
)
from infra.storage import ObjectStore
from preprocessing.catalog import PhotoRow, ShardRow, load_shard, store_shard

if TYPE_CHECKING:
    from evaluation.protocol import Cell, Drawing
    from flows.contenders import DrawingModel
    from preprocessing.shards import KeyedParts

Made = tuple[bytes, list[PhotoRow]]  # a shard's tar, and the photos that were refused


class IngestWorker:
    """{"index", "records"} -> {"index", "shard": ShardRow | None, "photos": [PhotoRow], "keys": of the kept ones}."""

    def __init__(self, store: ObjectStore, settings: IngestSettings, fingerprint: str, known_digests: Set[str]) -> None:
        self.store, self.settings, self.fingerprint, self.known = store, settings, fingerprint, known_digests
        self.detector = _LazyDetector()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from preprocessing.ingesting import ingest_chunk

        chunk = ingest_chunk(item["records"], self.known, self.settings, self.detector)
        shard = None
        if chunk.tar is not None:
            source = item["records"][0].source
            shard = store_shard(
                self.store, "ingest", chunk.shard_id, self.fingerprint, chunk.tar, len(chunk.keys), source
            )
        return {"index": item["index"], "shard": shard, "photos": chunk.rows, "keys": chunk.keys}


class CaptionWorker(StagedWorker):
    """{"row": ingest's ShardRow} -> {"shard", "photos"}."""

    def __init__(
        self, store: ObjectStore, reference: ModelReference, settings: CaptionSettings, fingerprint: str
    ) -> None:
        from preprocessing.batching import LoadedWhenAsked
        from preprocessing.captioning import open_captioner

        limit_threads()
        self.store, self.settings, self.fingerprint = store, settings, fingerprint
        self.captioner = LoadedWhenAsked(lambda: open_captioner(reference, settings))

    def fetch(self, item: dict[str, Any]) -> bytes:
        return load_shard(self.store, item["row"])

    def work(self, item: dict[str, Any], fetched: bytes) -> Made:
        from preprocessing.stages import caption_shard

        return caption_shard(fetched, self.captioner, self.settings, item["row"].shard)

    def put_away(self, item: dict[str, Any], made: Made) -> dict[str, Any]:
        return _finished(self.store, "caption", item["row"], self.fingerprint, *made)


class SegmentWorker(StagedWorker):
    """{"row": ingest's ShardRow} -> {"shard", "photos"}."""

    def __init__(
        self,
        store: ObjectStore,
        reference: ModelReference,
        settings: SegmentSettings,
        find_faces: bool,
        fingerprint: str,
    ) -> None:
        from preprocessing.batching import LoadedWhenAsked
        from preprocessing.segmentation import open_segmenter

        limit_threads()
        self.detector = _LazyDetector() if find_faces else None
        self.store, self.settings, self.fingerprint = store, settings, fingerprint
        self.segmenter = LoadedWhenAsked(lambda: open_segmenter(reference, settings))

    def fetch(self, item: dict[str, Any]) -> bytes:
        return load_shard(self.store, item["row"])

    def work(self, item: dict[str, Any], fetched: bytes) -> Made:
        from preprocessing.stages import segment_shard

        return segment_shard(fetched, self.segmenter, self.settings, item["row"].shard, self.detector)

    def put_away(self, item: dict[str, Any], made: Made) -> dict[str, Any]:
        return _finished(self.store, "segment", item["row"], self.fingerprint, *made)


class Joined(NamedTuple):
    """The parts of a training shard, the photos that were refused, and what was computed for it, by column;
    left_out: how many people each filter took."""

    built: list[list["KeyedParts"]]
    photos: list[PhotoRow]
    computed: dict[str, bytes]
    left_out: dict[str, int]


class PrecomputeWorker(StagedWorker):
    """{"row": ingest's ShardRow, "caption", "segment": ShardRow, "columns": {name: ShardRow} of those that are there,
    "without": the keys of photos to leave out} -> {"shard": the training shard's ShardRow, "photos", "left_out",
    "more": the rows of what was computed for it and, where it had to be split, of its other parts}.

    `fingerprints`: of "bind" and of each column.
    """

    def __init__(
        self,
        store: ObjectStore,
        models: ModelsSettings,
        settings: ShardSettings,
        binding: BindingSettings,
        filters: FilterSettings,
        fingerprints: Mapping[str, str],
        fingerprint: str,
    ) -> None:
        from preprocessing.precompute import Precomputer

        limit_threads()
        self.store, self.settings, self.fingerprint, self.fingerprints = store, settings, fingerprint, fingerprints
        self.binding, self.filters = binding, filters
        self.precomputer = Precomputer(models.base, models.clip, settings)

    def fetch(self, item: dict[str, Any]) -> dict[str, bytes]:
        """The shards by name; captions and masks only where their binding is not there."""
        rows = {"ingest": item["row"], **item["columns"]}
        if "bind" not in rows:
            rows |= {name: item[name] for name in ("caption", "segment")}
        return {name: load_shard(self.store, row) for name, row in rows.items()}

    def work(self, item: dict[str, Any], fetched: dict[str, bytes]) -> Joined:
        from preprocessing.columns import COLUMNS, wanted_columns
        from preprocessing.shards import without_samples
        from preprocessing.stages import bind_shard, build_shard, left_out_counts

        have, wanted = dict(fetched), wanted_columns(self.settings)
        if "bind" not in have:
            have["bind"] = bind_shard(
                have["ingest"], have["caption"], have["segment"], self.precomputer, self.binding, self.filters
            )
        for name in wanted:
            if name not in have:
                have[name] = COLUMNS[name](have["ingest"], have["bind"], self.precomputer, self.settings)
        bound, columns = without_samples(have["bind"], item.get("without", ())), {name: have[name] for name in wanted}
        built, photos = build_shard(have["ingest"], bound, columns, self.settings, item["row"].shard)
        computed = {name: tar for name, tar in have.items() if name not in fetched}
        return Joined(built, photos, computed, left_out_counts(built))

    def put_away(self, item: dict[str, Any], made: Joined) -> dict[str, Any]:
        from preprocessing.shards import tar_pieces

        row: ShardRow = item["row"]
        more = [
            _stored(self.store, name, row.shard, row, self.fingerprints[name], tar)
            for name, tar in made.computed.items()
        ]
        # The first part has the name of the shard that it was made of: that one is done.
        names = [row.shard, *(f"{row.shard}-{number}" for number in range(2, len(made.built) + 1))]
        stored = [
            store_shard(self.store, "shard", name, self.fingerprint, tar_pieces(samples), len(samples), row.source)
            for name, samples in zip(names, made.built, strict=True)
        ]
        return {"shard": stored[0], "photos": made.photos, "left_out": made.left_out, "more": [*stored[1:], *more]}


class PaintWorker(StagedWorker):
    """Draws a batch of cells and keeps it: {"cells": [Cell], "key": where in the store} -> {"key"}.

    `photos`: everybody's reference as PNG, by name.
    """

    def __init__(
        self, store: ObjectStore, settings: Settings, model: "DrawingModel", photos: Mapping[str, bytes]
    ) -> None:
        limit_threads()
        self.store, self.photos = store, photos
        self.painter = model.open(settings)
        self.crops: dict[str, Image.Image] = {}

    def fetch(self, item: dict[str, Any]) -> None:
        """Everything is here."""

    def work(self, item: dict[str, Any], fetched: None) -> "Sequence[Drawing]":
        cells: Sequence[Cell] = item["cells"]
        subjects = [{word: self._crops_of(names) for word, names in cell.cast.items()} for cell in cells]
        return self.painter.draw([cell.text for cell in cells], subjects, [cell.seed for cell in cells])

    def put_away(self, item: dict[str, Any], made: "Sequence[Drawing]") -> dict[str, Any]:
        from flows.evaluation_pictures import packed
        from flows.painting import to_png

        drawn = zip(item["cells"], made, strict=True)
        self.store.put(item["key"], packed((cell, to_png(one.picture), one.router) for cell, one in drawn))
        return {"key": item["key"]}

    def _crops_of(self, names: Sequence[str]) -> Any:
        """A word's one subject, or all where several share it."""
        crops = [self._crop_of(name) for name in names]
        return crops[0] if len(crops) == 1 else crops

    def _crop_of(self, name: str) -> Image.Image:
        from flows.painting import from_png

        if name not in self.crops:
            self.crops[name] = self.painter.crop(from_png(self.photos[name]), f"{name}'s photo")
        return self.crops[name]


class ReferenceWorker:
    """Looks for faces in the reference photos: {"people"} -> {"missing": [name]} of those who show none."""

    def __init__(self) -> None:
        from evaluation.faces import FaceLocator

        limit_threads()
        self.locate_face = FaceLocator()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from evaluation.observations import missing_references
        from flows.painting import as_subjects

        return {"missing": missing_references(as_subjects(item["people"]), self.locate_face)}


class JudgeWorker:
    """Measures a prompt's pictures.

    {"prompt": its number, "tars": the `Kept` that have its pictures, "everybody": cells that the prior's pictures stand
    for, too} -> {"scores": Parquet of every picture, "real_photos": similarities of the people's other photos, "about":
    the instruments}. `people` as `read_people` gives them.
    """

    def __init__(self, store: ObjectStore, settings: Settings, people: Sequence[dict[str, Any]]) -> None:
        from evaluation.observations import photographed
        from evaluation.scoring import real_photos
        from flows.judging import open_instruments
        from flows.painting import as_subjects

        limit_threads()
        self.store, self.settings = store, settings
        self.instruments = open_instruments(settings)
        self.photos = photographed(as_subjects(people), self.instruments)
        self.told = {
            "real_photos": real_photos(self.photos),
            "about": self.instruments.about.model_dump(mode="json"),
        }

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from evaluation.scoring import score_pictures
        from flows.evaluation_pictures import as_the_prior_drew, read_from
        from flows.painting import as_drawings

        drawn = list(read_from(self.store, item["tars"], lambda cell: cell.prompt == item["prompt"]))
        drawn = as_the_prior_drew(item["everybody"], drawn)
        drawn.sort(key=lambda one: one[0].model_dump_json())  # whatever the batches were
        release = as_drawings([one for one in drawn if one[0].names])
        prior = as_drawings([one for one in drawn if not one[0].names])
        scores = score_pictures(release, prior, self.photos, self.settings.evaluate, self.instruments)
        return {"scores": scores.to_parquet(), **self.told}


class _LazyDetector:
    """MTCNN, loaded with the first photo whose source knows no faces: most sources know them."""

    def __init__(self) -> None:
        self._detector: Any = None

    def detect(self, image: Image.Image) -> Any:
        if self._detector is None:
            from preprocessing.faces import FaceDetector

            limit_threads()
            self._detector = FaceDetector()
        return self._detector.detect(image)


def limit_threads() -> None:
    """One thread on a CPU: as many actors as cores share them out better than threads that fight over them."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def _finished(
    store: ObjectStore, stage: str, row: ShardRow, fingerprint: str, tar: bytes, photos: Sequence[PhotoRow]
) -> dict[str, Any]:
    return {"shard": _stored(store, stage, row.shard, row, fingerprint, tar), "photos": list(photos)}


def _stored(store: ObjectStore, stage: str, name: str, row: ShardRow, fingerprint: str, tar: bytes) -> ShardRow:
    from preprocessing.shards import read_tar

    return store_shard(store, stage, name, fingerprint, tar, sum(1 for _ in read_tar(tar)), row.source)
