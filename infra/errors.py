"""The one exception and the one warning that a user is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """What was wrong, where, and what mends it, in one sentence; the command line prints it and exits with 2."""


class UserNotice(UserWarning):
    """What a user should know though the command went on, in one sentence; the command line prints it as it stands."""


@contextmanager
def written_by_us(path: Path, mend: str) -> Iterator[None]:
    """What the file system refuses while `path` is written, as a UserError: the path is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f'"{str(path)[:200]}" cannot be written ({error.strerror or error}): {mend}.') from error
