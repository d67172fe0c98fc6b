"""The one exception and the one warning that a user is meant to read."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """What was wrong, where, and what mends it, in one sentence; the command line prints it and exits with 2."""


class DamagedObject(UserError):
    """An object of the store, named by its key, is gone or has other bytes than those that were written."""

    def __init__(self, sentence: str, key: str) -> None:
        super().__init__(sentence)
        self.key = key

    def __reduce__(self) -> tuple[type["DamagedObject"], tuple[str, str]]:
        return type(self), (str(self), self.key)


class UserNotice(UserWarning):
    """What a user should know though the command went on, in one sentence; the command line prints it as it stands."""


@contextmanager
def written_by_us(path: Path, mend: str) -> Iterator[None]:
    """What the file system refuses while `path` is written, as a UserError: the path is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f'"{str(path)[:200]}" cannot be written ({error.strerror or error}): {mend}.') from error


@contextmanager
def room_on_disk(what: str) -> Iterator[None]:
    """A full disk as a UserError; `what`: where room must be made, if the system does not name the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"There is no room left on the disk of {error.filename or what}: make some, and start the same command "
            "again; it goes on where it was."
        ) from error
