"""The same code has the same digest, and no other has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import code_version


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for package in ("evaluation", "flows", "infra", "moa_model", "preprocessing"):
        (tmp_path / package / "inner").mkdir(parents=True)
        (tmp_path / package / "inner" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(code_version, "_ROOT", tmp_path)
    yield tmp_path
    code_version.code_digest.cache_clear()


def _digest() -> str:
    code_version.code_digest.cache_clear()
    return code_version.code_digest()


def test_what_is_code_is_in_it(tree: Path) -> None:
    first = _digest()
    (tree / "flows" / "notes.md").write_text("not code")
    assert _digest() == first and len(first) == 12
    (tree / "flows" / "inner" / "a.py").write_text("x = 2\n")
    changed = _digest()
    (tree / "flows" / "inner" / "a.py").rename(tree / "flows" / "inner" / "b.py")
    assert len({first, changed, _digest()}) == 3


def test_this_code_has_a_name() -> None:
    code_version.code_digest.cache_clear()
    assert code_version.code_digest() in code_version.code_name()
