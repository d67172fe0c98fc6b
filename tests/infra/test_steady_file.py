"""A file that is read while somebody writes it is refused."""

from pathlib import Path

import pytest

from infra.errors import UserError
from infra.steady_file import steady


def test_a_file_that_stays_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    for size in (None, 7):
        with steady(tmp_path / "file", size) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize("after", [b"conten", b"contents", b"another"])
def test_one_that_changes_is_named(tmp_path: Path, after: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with pytest.raises(UserError, match=f"{path} changed while"), steady(path):
        path.write_bytes(after)


def test_one_of_another_size_is_not_begun(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(UserError, match="changed"), steady(tmp_path / "file", 8):
        raise AssertionError("it was begun")
