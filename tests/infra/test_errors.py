import errno
from pathlib import Path

import pytest

from infra.errors import UserError, room_on_disk, written_by_us


def test_a_user_error_prints_as_its_sentence() -> None:
    assert (
        str(UserError("There is no preset 'x': choose demo or sd15.")) == "There is no preset 'x': choose demo or sd15."
    )


def test_what_the_file_system_refuses_is_said_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "file" / "x"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/x.*Not a directory.*name another"), written_by_us(path, "name another"):
        path.write_text("never")
    with pytest.raises(KeyError), written_by_us(path, "name another"):  # not the file system's
        raise KeyError


def test_a_full_disk_is_said_with_the_file(tmp_path: Path) -> None:
    for named, said in ((str(tmp_path / "x"), str(tmp_path / "x")), (None, "/tmp of the worker")):
        with pytest.raises(UserError, match=f"no room left on the disk of {said}: make some"):
            with room_on_disk("/tmp of the worker"):
                raise OSError(errno.ENOSPC, "No space left on device", named)
    with pytest.raises(PermissionError), room_on_disk("/tmp"):
        raise PermissionError(errno.EACCES, "Permission denied")
