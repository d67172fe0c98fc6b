"""Bytes that lie elsewhere, as a file to read from any place."""

import io
from typing import Any


class RandomAccess(io.RawIOBase):
    """A seekable stream of what `read_at` gives; wrap it in io.BufferedReader where a read is costly."""

    def __init__(self, size: int) -> None:
        """`size`: bytes in all."""
        self._size, self._place = size, 0

    def read_at(self, place: int, size: int) -> bytes:
        """At least one and at most `size` bytes from `place` on, which all lie inside."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(start + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._size - self._place)
        if size <= 0:
            return 0
        data = self.read_at(self._place, size)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)
