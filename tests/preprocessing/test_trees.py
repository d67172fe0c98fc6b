"""Folders on disk, on S3 and in a zip: the same names in the same order, and no file opened to get them."""

import secrets
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from preprocessing.photos import Reason
from preprocessing.trees import DiskTree, S3Tree, Tree, ZipTree, unsafe

NAMES = (
    "b/2.PNG",
    "b/10.jpg",
    "b.jpg",
    "b-1.jpg",
    "a.jpeg",
    "c/d/e.tif",
    "c/.hidden/x.jpg",
    ".x.jpg",
    "n.txt",
    "写/真.jpg",
)
EXPECTED = ["a.jpeg", "b-1.jpg", "b.jpg", "b/10.jpg", "b/2.PNG", "c/d/e.tif", "写/真.jpg"]


def write(root: Path) -> None:
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


@pytest.fixture(params=["disk", "zip", "s3"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    if request.param == "s3":
        address, bucket = request.getfixturevalue("s3_address"), f"tree-{secrets.token_hex(6)}"
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket=bucket)
        for name in NAMES:
            client.put_object(Bucket=bucket, Key=f"some/prefix/{name}", Body=name.encode())
        client.put_object(Bucket=bucket, Key="some/prefix/c/", Body=b"")  # by which consoles mark a folder
        client.put_object(Bucket=bucket, Key="some/prefixes/z.jpg", Body=b"a neighbour")
        return S3Tree(bucket, "some/prefix/", address)
    write(tmp_path / "tree")
    if request.param == "disk":
        return DiskTree(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for name in (*NAMES, "__MACOSX/._a.jpeg", "__MACOSX/b.jpg"):
            archive.writestr(name, name)
    return ZipTree(tmp_path / "tree.zip")


def test_one_order_everywhere(tree: Tree) -> None:
    assert [found.origin for found in tree.walk()] == EXPECTED
    assert [found.origin for found in tree.walk("b")] == ["b/10.jpg", "b/2.PNG"]
    assert [found.origin for found in tree.walk(wanted=lambda name: name.endswith(".txt"))] == ["n.txt"]
    assert not any(found.problem for found in tree.walk())


def test_files_and_folders_are_found_by_name(tree: Tree) -> None:
    assert tree.find("b/10.jpg") is not None and tree.find("b/1") is None and tree.find("b") is None
    assert tree.has_folder("c/d") and tree.has_folder("") and not tree.has_folder("c/d/e")
    assert tree.address and tree.name in ("tree", "tree.zip", "prefix")


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "a-", "a.jpg", "b.jpg", "é.jpg"]), min_size=1, max_size=4), max_size=12
    )
)
@settings(max_examples=60)
def test_the_order_is_that_of_sorted_paths(tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]) -> None:
    root, written = tmp_path_factory.mktemp("order"), set()
    for path in paths:
        path = [*path[:-1], path[-1] if path[-1].endswith(".jpg") else f"{path[-1]}.jpg"]
        target = root.joinpath(*path)
        if any(parent.is_file() for parent in (target, *target.parents)) or target.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        written.add(target.relative_to(root).as_posix())
    found = [one.origin for one in DiskTree(root).walk()]
    assert [origin for origin in found if (root / origin).is_file()] == sorted(written)
    assert found == sorted(found)


_opened: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event == "open":
        _opened.append(str(arguments[0]))


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """What was opened during the test, by whatever way."""
    global _watching
    if not _opened:
        sys.addaudithook(_watch)
    _opened.clear()
    _watching = True
    yield _opened
    _watching = False


def test_a_listing_is_given_out_name_by_name_and_opens_nothing(tmp_path: Path, opened: list[str]) -> None:
    for folder in range(20):
        (tmp_path / f"{folder:02d}").mkdir()
        for number in range(50):
            (tmp_path / f"{folder:02d}" / f"{number:02d}.jpg").touch()
    opened.clear()
    walk = DiskTree(tmp_path).walk()
    assert next(walk).origin == "00/00.jpg"
    (tmp_path / "19" / "late.jpg").touch()
    opened.clear()
    rest = [found.origin for found in walk]
    assert len(rest) == 1000 and rest[-1] == "19/late.jpg", "the last folder is looked at when its turn comes"
    assert opened == []


@pytest.mark.parametrize(
    "name", ["/etc/passwd.jpg", "../x.jpg", "a/../../x.jpg", "C:\\x.jpg", "C:/x.jpg", "a\\b.jpg", "", "a/./b.jpg"]
)
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    problem = unsafe(name)
    assert problem is not None and problem[0] == Reason.UNSAFE_PATH
    if name:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(name, b"x")
        (found,) = ZipTree(tmp_path / "x.zip").walk()
        assert found.problem is not None and found.problem[0] == Reason.UNSAFE_PATH


def test_a_zip_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"<html>")
    with pytest.raises(UserError, match="x.zip"):
        list(ZipTree(tmp_path / "x.zip").walk())
    with pytest.raises(UserError, match="cannot be read"):
        list(ZipTree(tmp_path / "none.zip").walk())
