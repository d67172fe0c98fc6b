"""Options become settings."""

from pathlib import Path

import pytest

from flows.options import read_settings
from infra.errors import UserError


def test_settings_of_options(tmp_path: Path) -> None:
    settings = read_settings("demo", tmp_path, ["train.steps=7", "evaluate.seeds=[3, 4]"], "folder:pictures")
    assert settings.train.steps == 7 and settings.evaluate.seeds == [3, 4] and settings.workspace == tmp_path
    assert settings.ingest.source == f"folder:{Path('pictures').absolute()}"
    assert read_settings("demo", None, None).ingest.source == "paperfolk"
    for elsewhere in ("folder:s3://bucket/prefix", "webdataset:pipe:cat x", "paperfolk"):
        assert read_settings("demo", None, None, elsewhere).ingest.source == elsewhere


@pytest.mark.parametrize("change", ["nonsense", "train.stepz=3", "train.steps=many"])
def test_changes_that_are_none(tmp_path: Path, change: str) -> None:
    with pytest.raises(UserError):
        read_settings("demo", tmp_path, [change])
