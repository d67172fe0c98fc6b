"""Opening a source by name, and adding one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import UserError
from preprocessing.sources import SOURCES, Record, Surroundings, open_source
from preprocessing.trees import Tree


@pytest.mark.parametrize("spec", ["", "folder", "folder:", "flickr:/tmp", "/tmp", "paperfolk", ":"])
def test_an_unknown_source_is_one_sentence_with_the_choices(spec: str) -> None:
    with pytest.raises(UserError, match="ffhq:PATH, celeba:PATH, folder:PATH") as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["ffhq", "celeba", "folder"])
def test_a_wrong_path_is_one_sentence(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="does not exist"):
        open_source(f"{kind}:{tmp_path}/none")
    with pytest.raises(UserError, match="is not a folder"):
        open_source(f"{kind}:{tmp_path}/file")
    for path in ("x" * 5000, "nu\0ll", "~nobody-of-that-name/x"):
        with pytest.raises(UserError):
            open_source(f"{kind}:{path}")


def test_a_path_may_hold_a_colon_and_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").mkdir()
    assert open_source(f"folder:{tmp_path}/a:b").name.startswith("folder:a:b-")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("folder:~/a:b").name == open_source(f"folder:{tmp_path}/a:b").name


def test_a_new_source_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Album:
        name, terms, license_files = "album", "mine", ()

        def __init__(self, tree: Tree, around: Surroundings) -> None:
            self.tree = tree

        def records(self) -> Iterator[Record]:
            yield Record(self.name, "1.jpg", self.tree.at("1.jpg"), author="me")

    monkeypatch.setitem(SOURCES, "album", Album)
    (record,) = open_source(f"album:{tmp_path}").records()
    assert record.author == "me"
