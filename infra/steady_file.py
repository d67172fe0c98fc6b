"""A file that must stay as it is while it is read, as what is published must."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from infra.errors import UserError


@contextmanager
def steady(path: Path, size: int | None = None) -> Iterator[FileIO]:
    """The open file, of `size` bytes where it is given; UserError where it is not, or changes before the block ends."""
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        if size is not None and before.st_size != size:
            raise changed(path)
        yield file
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise changed(path)


def changed(path: Path) -> UserError:
    """What to tell the user of such a file."""
    return UserError(f"{path} changed while it was being published: publish it again once it is written.")
