from pathlib import Path

import pytest

from infra.errors import UserError, written_by_us


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
