import sys
from pathlib import Path

import pytest

from infra.backends import LAVIS_PYTHON, captioner_backends, lavis_interpreter, segmenter_backends
from infra.errors import UserError


def test_what_is_missing_is_told_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LAVIS_PYTHON, raising=False)
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as where it is not installed
    captioners = {one.name: one.missing for one in captioner_backends()}
    assert captioners["transformers"] == "" and "pip install" in captioners["lavis"]
    segmenters = {one.name: one.missing for one in segmenter_backends()}
    assert segmenters["transformers"] == "" and "no detectron2 here: build" in segmenters["detectron2"]

    for name in ("detectron2", "mask2former"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "detectron2")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {one.name: one.missing for one in segmenter_backends()}["detectron2"] == ""


def test_an_interpreter_is_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LAVIS_PYTHON, sys.executable)
    assert lavis_interpreter() == sys.executable
    monkeypatch.setenv(LAVIS_PYTHON, str(tmp_path))
    with pytest.raises(UserError, match="is no program"):
        lavis_interpreter()
