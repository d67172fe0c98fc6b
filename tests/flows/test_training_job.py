"""What counts as a complete checkpoint."""

from pathlib import Path

import pytest

from flows.training_job import fetch_checkpoint, list_files
from infra.storage import DirectoryStore

RUN = "0123456789abcdef"


def _checkpoint(root: Path, attempt: str, step: int, content: str) -> Path:
    folder = root / "runs" / RUN / "attempts" / attempt / f"step-{step:08d}"
    (folder / "released").mkdir(parents=True)
    (folder / "state.json").write_text(content)
    (folder / "released" / "adapter_config.json").write_text(content)
    list_files(folder)
    return folder


def test_latest_complete_one_of_all_attempts(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "store", "0001", 200, "old")
    _checkpoint(tmp_path / "store", "0002", 300, "new")
    _checkpoint(tmp_path / "store", "0003", 100, "older")
    assert fetch_checkpoint(DirectoryStore(tmp_path / "store"), RUN, tmp_path / "got") == 300
    assert (tmp_path / "got" / "state.json").read_text() == "new"
    assert (tmp_path / "got" / "released" / "adapter_config.json").read_text() == "new"


@pytest.mark.parametrize("damage", ["no list", "file missing", "file cut short", "list cut short"])
def test_one_that_a_kill_cut_short_is_passed_over(tmp_path: Path, damage: str) -> None:
    _checkpoint(tmp_path / "store", "0001", 100, "whole")
    broken = _checkpoint(tmp_path / "store", "0001", 200, "broken")
    if damage == "no list":
        (broken / "complete.json").unlink()
    elif damage == "file missing":
        (broken / "state.json").unlink()
    elif damage == "file cut short":
        (broken / "state.json").write_text("bro")
    else:
        (broken / "complete.json").write_text('{"state.json": ')
    assert fetch_checkpoint(DirectoryStore(tmp_path / "store"), RUN, tmp_path / "got") == 100
    assert (tmp_path / "got" / "state.json").read_text() == "whole"


def test_none_at_all(tmp_path: Path) -> None:
    assert fetch_checkpoint(DirectoryStore(tmp_path / "store"), RUN, tmp_path / "got") == 0
