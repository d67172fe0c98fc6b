"""A release as a folder: whole or not at all, exchanged in one step."""

import os
import time
from pathlib import Path

import pytest

from infra.blobs import describe_bytes
from infra.errors import UserError
from infra.large_objects import large_objects
from infra.manifest import Manifest, describe_name, make_manifest
from infra.release_cache import ReleaseCache, Wanted
from infra.release_folder import alone, differs, strangers, write_folder
from infra.storage import DirectoryStore


@pytest.fixture
def cache(tmp_path: Path) -> ReleaseCache:
    return ReleaseCache(tmp_path / "cache")


def manifest_of(cache: ReleaseCache, tmp_path: Path, **files: bytes) -> Manifest:
    """The manifest of files that are in the cache; "__" in a name is a slash, "_" a dot."""
    store = DirectoryStore(tmp_path / "store")
    named = {name.replace("__", "/").replace("_", "."): data for name, data in files.items()}
    for name, data in named.items():
        store.put(name, data)
        cache.fetch(large_objects(store), [Wanted(name, describe_bytes(data), name)], lambda size: None)
    return make_manifest("moa", [describe_name(name, describe_bytes(data)) for name, data in named.items()])


def test_a_folder_has_the_files_and_the_manifest(cache: ReleaseCache, tmp_path: Path) -> None:
    manifest = manifest_of(cache, tmp_path, README_md=b"card", deep__a_bin=b"a")
    folder = tmp_path / "new" / "folder"
    write_folder(folder, manifest, cache, replace=False)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"README.md": b"card", "deep/a.bin": b"a", "manifest.json": manifest.data}
    assert differs(folder, manifest, cache) is None and strangers(folder, manifest) == []
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_what_differs_is_said(cache: ReleaseCache, tmp_path: Path) -> None:
    manifest = manifest_of(cache, tmp_path, a_bin=b"a", b_bin=b"b")
    other = manifest_of(cache, tmp_path, a_bin=b"a")
    folder = tmp_path / "folder"
    write_folder(folder, manifest, cache, replace=False)
    assert differs(folder, other, cache) == "another release"
    (folder / "notes.txt").write_text("mine")
    assert differs(folder, manifest, cache) == "notes.txt beside it" and strangers(folder, manifest) == ["notes.txt"]
    (folder / "notes.txt").unlink()
    for damage in ("gone", "cut", "changed", "link"):
        path = folder / "b.bin"
        path.unlink(missing_ok=True)
        if damage == "link":
            path.symlink_to(folder / "a.bin")
        elif damage != "gone":
            path.write_bytes({"cut": b"", "changed": b"B"}[damage])
        assert differs(folder, manifest, cache) == "b.bin in another state"
    (folder / "b.bin").unlink()
    (folder / "b.bin").write_bytes(b"b")  # a copy of its own is as good
    assert differs(folder, manifest, cache) is None


def test_a_file_changed_through_the_shared_disk_space_is_noticed(cache: ReleaseCache, tmp_path: Path) -> None:
    manifest = manifest_of(cache, tmp_path, a_bin=b"abc")
    folder = tmp_path / "folder"
    write_folder(folder, manifest, cache, replace=False)
    (folder / "a.bin").chmod(0o644)
    with (folder / "a.bin").open("r+b") as file:
        file.write(b"x")
    assert differs(folder, manifest, cache) == "a.bin in another state"


def test_a_folder_is_exchanged_in_one_step(cache: ReleaseCache, tmp_path: Path) -> None:
    old, new = manifest_of(cache, tmp_path, a_bin=b"old"), manifest_of(cache, tmp_path, a_bin=b"new", b_bin=b"b")
    folder = tmp_path / "out" / "folder"
    write_folder(folder, old, cache, replace=False)
    opened = os.open(folder, os.O_RDONLY)  # whoever stands in the old folder keeps it
    try:
        write_folder(folder, new, cache, replace=True)
        assert differs(folder, new, cache) is None
        assert os.fstat(opened).st_ino != folder.stat().st_ino
    finally:
        os.close(opened)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_what_somebody_else_filled_meanwhile_is_left_alone(cache: ReleaseCache, tmp_path: Path) -> None:
    manifest, folder = manifest_of(cache, tmp_path, a_bin=b"a"), tmp_path / "out" / "folder"
    folder.mkdir(parents=True)
    (folder / "theirs").write_text("x")
    with pytest.raises(UserError, match="filled by somebody else"):
        write_folder(folder, manifest, cache, replace=False)
    assert [path.name for path in folder.iterdir()] == ["theirs"] and len(list(folder.parent.iterdir())) == 1
    with pytest.raises(UserError, match="cannot be exchanged in one step"):
        write_folder(tmp_path / "out" / "none", manifest, cache, replace=True)
    assert len(list(folder.parent.iterdir())) == 1


@pytest.mark.parametrize(
    "weights",
    [b"", b"1234567", (10**9).to_bytes(8, "little") + b"{}", (2**63).to_bytes(8, "little") + b"{}", bytes(8) + b"{}",
     (3).to_bytes(8, "little") + b"{}"],
)  # fmt: skip
def test_weights_whose_header_no_reader_should_believe_are_refused(
    cache: ReleaseCache, tmp_path: Path, weights: bytes
) -> None:
    manifest, folder = manifest_of(cache, tmp_path, adapter_safetensors=weights), tmp_path / "out" / "folder"
    with pytest.raises(UserError, match="no safetensors file"):
        write_folder(folder, manifest, cache, replace=False)
    assert list(folder.parent.iterdir()) == []


def test_what_a_killed_pull_left_goes_with_the_next(cache: ReleaseCache, tmp_path: Path) -> None:
    manifest, folder = manifest_of(cache, tmp_path, a_bin=b"a"), tmp_path / "out" / "folder"
    for name, age in (
        (".folder.partial-01234567", 7200),
        (".folder.partial-89abcdef", 60),
        (".folder.partial-mine", 7200),
    ):
        (folder.parent / name).mkdir(parents=True)
        os.utime(folder.parent / name, (time.time() - age,) * 2)
    write_folder(folder, manifest, cache, replace=False)
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        ".folder.partial-89abcdef", ".folder.partial-mine", "folder",
    ]  # fmt: skip


def test_one_at_a_time_into_a_folder(cache: ReleaseCache, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with alone(cache, folder, wait=False), alone(cache, tmp_path / "other", wait=False):
        with pytest.raises(UserError, match="Another pull into .*folder is under way"):
            with alone(cache, folder, wait=False):
                pass
    with alone(cache, folder, wait=True):
        pass
