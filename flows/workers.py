"""The Ray actors: each loads its model once, then takes one shard after another.

Shards come from the object store and go back to it; only rows of the catalog travel between processes. Nothing is
visible before its row is committed, so an actor that dies in the middle leaves litter at worst.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

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


class IngestWorker:
    """{"index", "records"} -> {"index", "shard": ShardRow | None, "photos": [PhotoRow], "keys": of the kept ones}."""

    def __init__(
        self, store: ObjectStore, settings: IngestSettings, fingerprint: str, known_digests: frozenset[str]
    ) -> None:
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


class CaptionWorker:
    """{"row": ingest's ShardRow} -> {"shard", "photos"}."""

    def __init__(
        self, store: ObjectStore, reference: ModelReference, settings: CaptionSettings, fingerprint: str
    ) -> None:
        from preprocessing.captioning import open_captioner

        limit_threads()
        self.store, self.settings, self.fingerprint = store, settings, fingerprint
        self.captioner = open_captioner(reference, settings)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from preprocessing.stages import caption_shard

        row: ShardRow = item["row"]
        tar, photos = caption_shard(load_shard(self.store, row), self.captioner, self.settings, row.shard)
        return _finished(self.store, "caption", row, self.fingerprint, tar, photos)


class SegmentWorker:
    """{"row": ingest's ShardRow} -> {"shard", "photos"}."""

    def __init__(
        self,
        store: ObjectStore,
        reference: ModelReference,
        settings: SegmentSettings,
        find_faces: bool,
        fingerprint: str,
    ) -> None:
        from preprocessing.segmentation import open_segmenter

        limit_threads()
        self.detector = _LazyDetector() if find_faces else None
        self.store, self.settings, self.fingerprint = store, settings, fingerprint
        self.segmenter = open_segmenter(reference, settings)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from preprocessing.stages import segment_shard

        row: ShardRow = item["row"]
        ingested = load_shard(self.store, row)
        tar, photos = segment_shard(ingested, self.segmenter, self.settings, row.shard, self.detector)
        return _finished(self.store, "segment", row, self.fingerprint, tar, photos)


class PrecomputeWorker:
    """{"row": ingest's ShardRow, "caption": ShardRow, "segment": ShardRow} -> {"shard", "photos", "left_out"}."""

    def __init__(
        self,
        store: ObjectStore,
        models: ModelsSettings,
        settings: ShardSettings,
        binding: BindingSettings,
        filters: FilterSettings,
        fingerprint: str,
    ) -> None:
        from preprocessing.precompute import Precomputer

        limit_threads()
        self.binding, self.filters = binding, filters
        self.store, self.settings, self.fingerprint = store, settings, fingerprint
        self.precomputer = Precomputer(models.base, models.clip, settings)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from preprocessing.stages import build_shard, left_out_counts

        row: ShardRow = item["row"]
        ingested, captions, segments = (load_shard(self.store, item[name]) for name in ("row", "caption", "segment"))
        tar, photos = build_shard(
            ingested, captions, segments, self.precomputer, self.settings, row.shard, self.binding, self.filters
        )
        return {**_finished(self.store, "shard", row, self.fingerprint, tar, photos), "left_out": left_out_counts(tar)}


class PaintWorker:
    """Draws cells: {"cells": [Cell], "photos": {name: PNG}} -> {"drawn": [(Cell, PNG, router map | None)]}.

    `adapter`: an adapter's files by name; without one only the prior can draw.
    """

    def __init__(self, settings: Settings, adapter: dict[str, bytes] | None) -> None:
        from flows.painting import Painter

        limit_threads()
        self.painter = Painter.open(settings, adapter)
        self.crops: dict[str, Image.Image] = {}

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from flows.painting import from_png, to_png

        cells = item["cells"]
        for name, photo in item["photos"].items():
            if name not in self.crops:
                self.crops[name] = self.painter.crop(from_png(photo), f"{name}'s photo")
        subjects = [{} if cell.subject is None else {cell.word: self.crops[cell.subject]} for cell in cells]
        drawn = self.painter.draw([cell.text for cell in cells], subjects, [cell.seed for cell in cells])
        return {"drawn": [(cell, to_png(one.picture), one.router) for cell, one in zip(cells, drawn, strict=True)]}


class JudgeWorker:
    """Measures a release's pictures. {"release", "prior": as PaintWorker's "drawn", "people"} -> {"metrics": dict}."""

    def __init__(self, settings: Settings) -> None:
        from flows.painting import open_instruments

        limit_threads()
        self.settings = settings
        self.instruments = open_instruments(settings)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from evaluation.scoring import score
        from flows.painting import as_drawings, as_subjects

        release, prior = as_drawings(item["release"]), as_drawings(item["prior"])
        subjects = as_subjects(item["people"])
        metrics = score(release, prior, subjects, self.settings.evaluate, self.instruments)
        return {"metrics": metrics.model_dump(mode="json")}


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
    from preprocessing.shards import read_tar

    samples = sum(1 for _ in read_tar(tar))
    shard = store_shard(store, stage, row.shard, fingerprint, tar, samples, row.source)
    return {"shard": shard, "photos": list(photos)}
