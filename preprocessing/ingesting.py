"""A chunk of a source's photos → one shard of checked, square pictures and one row per photo.

A chunk is a run of consecutive records, so the same source gives the same chunks; a photo that is refused costs itself
only. Chunks may be ingested side by side, each with the digests known before it: where two of them kept the same photo,
their `keys` tell, and the later one is ingested again.
"""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

from PIL import Image

from preprocessing.catalog import KEPT, REFUSED, PhotoRow
from preprocessing.faces import Face
from preprocessing.photos import PhotoRefused, Reason, decode, read_bytes, square
from preprocessing.places import is_remote
from preprocessing.shards import encode_json, write_tar
from preprocessing.sources import Record

STAGE = "ingest"
_AHEAD = 4  # photos of an object store that are fetched while one is decoded: the bytes of so many are in memory


class IngestLimits(Protocol):
    """What of the ingest settings matters here."""

    @property
    def pixels(self) -> int: ...
    @property
    def min_side(self) -> int: ...
    @property
    def max_pixels(self) -> int: ...


class Detector(Protocol):
    """Finds faces; `preprocessing.faces.FaceDetector` is one."""

    def detect(self, image: Image.Image) -> list[Face]: ...


@dataclass(frozen=True)
class IngestedChunk:
    """What became of a chunk: one row per record; `tar` is None and `shard_id` "" where none was kept."""

    shard_id: str
    tar: bytes | None
    rows: list[PhotoRow]

    @property
    def keys(self) -> list[str]:
        """The kept photos' keys, sorted as the samples in the tar."""
        return sorted(row.key for row in self.rows if row.status == KEPT)


def chunk(records: Iterable[Record], photos_per_shard: int) -> Iterator[list[Record]]:
    """Consecutive records, `photos_per_shard` at a time; the last chunk may be shorter."""
    if photos_per_shard < 1:
        raise ValueError(f"{photos_per_shard} photos per shard")
    remaining = iter(records)
    while batch := list(islice(remaining, photos_per_shard)):
        yield batch


def ingest_chunk(
    records: Sequence[Record],
    known_digests: AbstractSet[str],
    settings: IngestLimits,
    detector: Detector | None = None,
) -> IngestedChunk:
    """Read, check and crop each photo; the same files and settings give the same bytes and rows.

    detector: finds the faces where the source does not say (`Record.faces` is None); without one, no face is known.
    Of several records with the same bytes the first that can be kept is kept.
    """
    samples: dict[str, dict[str, bytes]] = {}
    rows: list[tuple[Record, str, Reason | None, str]] = []
    for record, read in _read_ahead(records):
        key = ""
        try:
            if record.problem is not None:
                raise PhotoRefused(*record.problem)
            data = read()
            key = hashlib.sha256(data).hexdigest()
            _check_file(record, data)
            if key in samples or key in known_digests:
                raise PhotoRefused(Reason.DUPLICATE, ", ".join(filter(None, (f"SHA-256 {key[:16]}", record.twin))))
            described = record.beside.describe(record) if record.beside is not None else record
            samples[key] = _sample(
                described, decode(data, settings.min_side, settings.max_pixels), settings.pixels, detector
            )
        except PhotoRefused as refusal:
            rows.append((record, key, refusal.reason, refusal.detail))
            continue
        rows.append((record, key, None, ""))
    if not samples:
        return IngestedChunk("", None, [_row("", *row) for row in rows])
    shard_id = shard_name(samples)
    return IngestedChunk(shard_id, write_tar(samples.items()), [_row(shard_id, *row) for row in rows])


def shard_name(keys: Iterable[str]) -> str:
    """A shard is named by what is in it: the first 16 hex digits of the SHA-256 of its sorted keys."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]


def _read_ahead(records: Iterable[Record]) -> Iterator[tuple[Record, Callable[[], bytes]]]:
    """Each record with what gives its bytes. Of those on an object store, which answers late, the next few are on their
    way already; on a disk the operating system sees to that."""
    with ThreadPoolExecutor(_AHEAD) as readers:
        window: deque[tuple[Record, Callable[[], bytes]]] = deque()
        for record in records:
            read: Callable[[], bytes] = partial(read_bytes, record.path)
            if record.problem is None and is_remote(record.path):
                coming: Future[bytes] = readers.submit(read)
                read = coming.result
            window.append((record, read))
            if len(window) > _AHEAD:
                yield window.popleft()
        yield from window


def _check_file(record: Record, data: bytes) -> None:
    """What the source's lists say of the file's bytes."""
    if record.size is not None and len(data) != record.size:
        raise PhotoRefused(Reason.SIZE_MISMATCH, f"{len(data)} bytes, listed with {record.size}")
    if record.md5 is not None:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != record.md5:
            raise PhotoRefused(Reason.CHECKSUM_MISMATCH, f"MD5 {md5}, listed with {record.md5}")


def _sample(record: Record, image: Image.Image, pixels: int, detector: Detector | None) -> dict[str, bytes]:
    if record.pixels is not None and image.size != record.pixels:
        listed = f"{record.pixels[0]} x {record.pixels[1]}"
        raise PhotoRefused(Reason.SIZE_MISMATCH, f"{image.width} x {image.height} pixels, listed with {listed}")
    faces = record.faces
    if faces is None:
        faces = tuple(detector.detect(image)) if detector is not None else ()
    picture, crop = square(image, faces, pixels)
    inside = [face for face in map(crop.face, faces) if face is not None]
    description: dict[str, Any] = {
        "source": record.source,
        "origin": record.origin,
        "license": record.license,
        "author": record.author,
        "identity": record.identity,
        "word": record.word,
        "split": record.split,
        "size": [image.width, image.height],
        "crop": [crop.left, crop.top, crop.left + crop.side, crop.top + crop.side],
        "faces": [face.as_json() for face in inside],
        **({"consent": record.consent} if record.consent else {}),
        **(record.about or {}),
    }
    given: dict[str, bytes] = {}
    if record.prepared is not None:
        description["prepared"], given["instances.png"] = record.prepared.cropped(crop, image.size)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return {"jpg": buffer.getvalue(), "json": encode_json(description), **given}


def _row(shard_id: str, record: Record, key: str, reason: Reason | None, detail: str) -> PhotoRow:
    """A refused photo is in no shard: its row stays the same whatever it was read together with."""
    if reason is None:
        return PhotoRow(STAGE, shard_id, key, record.source, record.origin, KEPT)
    return PhotoRow(STAGE, "", key, record.source, record.origin, REFUSED, reason.value, detail or reason.sentence)
