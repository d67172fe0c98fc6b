"""A shard on a local disk: any of its samples by number, without reading the others."""

import mmap
import os
import weakref
from array import array
from pathlib import Path

import xxhash

from preprocessing.shards import Sample, sample_spans

# Of each sample its key, its files' extensions, and numbers: its first byte in the tar and its size there, of each file
# its first byte in those and its size, and at the end a checksum of them all: 350 bytes a sample.
ShardIndex = list[tuple[str, tuple[str, ...], "array[int]"]]


class SampleChanged(Exception):
    """A sample's bytes are not those that its shard had when it was indexed."""


class ShardReader:
    """The samples of a tar that `shards.write_tar` made, in its order. UnsafeTar for any other.

    It is read through once for the samples' checksums, and not even that where the index is known from another time.
    The file may be removed meanwhile: what is open stays.
    """

    def __init__(self, path: Path, index: ShardIndex | None = None) -> None:
        # Not mapped: to read costs less than a page's first touch, and a file that is cut off kills nobody.
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.index = _index(self._file) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, its files views of one copy. SampleChanged where something was written over it."""
        key, extensions, places = self.index[number]
        data = os.pread(self._file, places[1], places[0])
        if xxhash.xxh3_64_intdigest(data) != places[-1]:
            raise SampleChanged(key)
        view, numbers = memoryview(data), iter(places[2:-1])
        return Sample(key, {name: view[start : start + next(numbers)] for name, start in zip(extensions, numbers)})  # noqa: B905


def _index(file: int) -> ShardIndex:
    kinds: dict[tuple[str, ...], tuple[str, ...]] = {}  # most samples have the same extensions: one tuple for all
    index = []
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        for key, spans in sample_spans(data):
            extensions = tuple(spans)
            first = min(start for start, _ in spans.values())
            size = max(start + size for start, size in spans.values()) - first
            places = array("Q", [first, size])
            places.extend(number for start, size in spans.values() for number in (start - first, size))
            places.append(xxhash.xxh3_64_intdigest(view[first : first + size]))
            index.append((key, kinds.setdefault(extensions, extensions), places))
    return index
