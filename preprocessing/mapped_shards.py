"""A shard on a local disk, mapped into memory: any of its samples by number, without reading the others."""

import mmap
import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path

from preprocessing.shards import Sample, sample_spans

# Of each sample its key, its files' extensions, for each file its first byte and its size, and at the end a checksum of
# all its files: 350 bytes a sample.
ShardIndex = list[tuple[str, tuple[str, ...], "array[int]"]]


class MappedShard:
    """The samples of a tar that `shards.write_tar` made, in its order. UnsafeTar for any other.

    It is read through once for the samples' checksums, and not even that where the index is known from another time.
    The file may be removed meanwhile: what is mapped stays. What is written over it is noticed by `intact`.
    """

    def __init__(self, path: Path, index: ShardIndex | None = None) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.index = _index(self._data) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, a copy of its bytes."""
        key, extensions, spans = self.index[number]
        data, places = self._data, iter(spans)
        return Sample(key, {name: data[start : start + next(places)] for name, start in zip(extensions, places)})  # noqa: B905

    def intact(self, number: int, sample: Sample) -> bool:
        """Whether sample `number`, as it was just read, is what it was when the index was made."""
        return self.index[number][2][-1] == _checksum(sample.parts.values())


def _index(data: mmap.mmap) -> ShardIndex:
    kinds: dict[tuple[str, ...], tuple[str, ...]] = {}  # most samples have the same extensions: one tuple for all
    index = []
    for key, spans in sample_spans(data):
        extensions = tuple(spans)
        places = array("q", [number for span in spans.values() for number in span])
        places.append(_checksum(data[start : start + size] for start, size in spans.values()))
        index.append((key, kinds.setdefault(extensions, extensions), places))
    return index


def _checksum(files: Iterable[bytes]) -> int:
    checksum = 0
    for file in files:
        checksum = zlib.crc32(file, checksum)
    return checksum
