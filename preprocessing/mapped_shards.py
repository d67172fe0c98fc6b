"""A shard on a local disk, mapped into memory: any of its samples by number, without reading the others."""

import mmap
from pathlib import Path

from preprocessing.shards import Sample, sample_spans


class MappedShard:
    """The samples of a tar that `shards.write_tar` made, in its order. UnsafeTar for any other.

    Only the headers are read at first. The file may be removed meanwhile: what is mapped stays.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._samples = list(sample_spans(self._data))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, a copy of its bytes."""
        key, spans = self._samples[number]
        return Sample(key, {extension: self._data[start : start + size] for extension, (start, size) in spans.items()})
