"""Registries, folders and caches that strangers wrote or damaged: refused in a sentence, and never a file elsewhere."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from infra.manifest import blob_key, to_json
from infra.pulling import pull, pull_from
from infra.registry import Releases, models
from infra.release_cache import CACHE
from infra.storage import DirectoryStore
from infra.upkeep import find_garbage, verify

FILES = {"README.md": b"a card", "adapter.bin": b"weights", "pictures/one.bin": b"a picture"}
RELEASED = [*FILES, "lineage.json"]
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "truncated": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "swapped": lambda data: b"a card" if data != b"a card" else b"weights",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


def files_below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- what a stranger may write into a registry

_NASTY = [
    "..", "../evil", "a/../../evil", "/evil", "//evil", "C:\\evil", "C:evil", "\\\\host\\evil", "a\0b", "evil\n",
    "a//b", "", ".",
    "./evil", "a/.", "~/evil", "$HOME", "%2e%2e/evil", "..\\evil", "a" * 5000, "CON", "é", "\u202etxt.exe", "\ud800",
    ".git/config", "manifest.json", "MANIFEST.json", "model.sig", "Model.SIG", "adapter.bin/x", "-rf",
    ".partial-1", "𝒜" * 60,
]  # fmt: skip
_NAMES = st.sampled_from([*_NASTY, "adapter.bin", "deep/er/file"]) | st.text(max_size=12)
_SIZES = st.sampled_from([7, 0, -1, 2**40, 2**63, 10**30, True, 7.0, "7", None]) | st.integers()
_DIGESTS = st.sampled_from([hashlib.sha256(b"weights").hexdigest(), "0" * 64, "../" * 21 + "x", "", None, 7])
_ABOUT = st.fixed_dictionaries(
    {"size": _SIZES, "sha256": _DIGESTS},
    optional={"role": st.sampled_from(["weights", "../x", 3]), "media_type": st.sampled_from(["text/html", ""])}
    | {"parts": st.lists(_DIGESTS, max_size=2)},
)
_FILES = st.dictionaries(_NAMES, _ABOUT | st.none() | st.integers() | st.lists(st.integers(), max_size=2), max_size=4)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _new_form(files: Any, model: object, version: object) -> bytes:
    described = {"format": version, "model": model, "files": files}
    digest = hashlib.sha256(to_json(described)).hexdigest()
    return to_json({**described, "digest": digest})


_MANIFESTS = st.builds(
    _new_form,
    _FILES,
    st.sampled_from(["moa", "../moa", 3]),
    st.sampled_from(["moa-release/1", "moa-release/2", "x", None]),
)
_ANY_BYTES = (
    st.binary(max_size=60)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.integers(1, 100_000).map(lambda depth: b'{"a":' * depth)
    | _MANIFESTS.map(lambda data: data + b"{}")
)


class _Room:
    """A folder in which each example has a registry and a place to pull into; what is beside these stays as it is."""

    def __init__(self, root: Path) -> None:
        self.root, self._example = root, 0

    def next(self) -> tuple[DirectoryStore, Path]:
        self._example += 1
        here = self.root / str(self._example)
        store = DirectoryStore(here / "store")
        store.put(blob_key(hashlib.sha256(b"weights").hexdigest()), b"weights")
        return store, here / "work" / "out"

    def check(self, store: DirectoryStore, target: Path) -> None:
        """Nothing is beside store and target, and in the target nothing but what a release of these may have."""
        here = store.root.parent
        assert {path.name for path in here.iterdir()} <= {"store", "work"}
        assert {path.name for path in self.root.iterdir()} <= {*map(str, range(self._example + 1)), "cache"}
        if target.parent.exists():
            assert {path.name for path in target.parent.iterdir()} <= {"out"}
        for path in target.rglob("*"):
            assert not path.is_symlink() and target.resolve() in path.resolve().parents


def _read_all(store: DirectoryStore, target: Path) -> None:
    """Everything that reads a registry; UserError is all that may come of it."""
    for reading in (
        lambda: pull_from(store, "moa@1", "", target),
        lambda: pull_from(store, "production", "moa", target),
        lambda: models(store),
        lambda: Releases(store).history("production"),
        lambda: verify(Releases(store)),
        lambda: find_garbage(store),
    ):
        try:
            reading()
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500, str(error)


_quick = settings(max_examples=60)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[_Room]:
    yield _Room(tmp_path)


@_quick
@given(data=_MANIFESTS | _ANY_BYTES)
def test_any_manifest_is_whole_or_refused_and_writes_nowhere_else(room: _Room, data: bytes) -> None:
    store, target = room.next()
    store.put("releases/moa/0001/manifest.json", data)
    _read_all(store, target)
    room.check(store, target)


@_quick
@given(files=_FILES | _JSON, lineage=st.just({}) | _JSON, trailing=st.sampled_from([b"", b"{}", b"\0"]))
def test_any_manifest_of_before_too(room: _Room, files: object, lineage: object, trailing: bytes) -> None:
    store, target = room.next()
    data = json.dumps({"files": files, "lineage": lineage}).encode() + trailing
    release_id = hashlib.sha256(data).hexdigest()[:16]
    store.put(f"releases/{release_id}/manifest.json", data)
    store.put("releases/log/00000001.json", json.dumps({"id": release_id}).encode())
    for name in files if isinstance(files, dict) else ():
        try:
            store.put(f"releases/{release_id}/{name}", b"weights")
        except (OSError, ValueError):  # no object can be called so
            continue
    _read_all(store, target)
    room.check(store, target)


@_quick
@given(entry=_ANY_BYTES | _JSON.map(lambda value: json.dumps({"id": value}).encode()))
def test_any_entry_of_a_log_or_of_a_name_too(room: _Room, entry: bytes) -> None:
    store, target = room.next()
    for key in ("releases/log/00000001.json", "names/moa/production/0001.json", "aliases/production/00000001.json"):
        store.put(key, entry)
    _read_all(store, target)
    room.check(store, target)


@_quick
@given(
    reference=st.text(max_size=40) | st.sampled_from(["\0/moa@1", "/moa@1", "s3:///moa@1", "ftp://x/moa@1", "a/../@1"])
)
def test_any_text_asked_for_is_refused_in_a_sentence(tmp_path: Path, reference: str) -> None:
    before = files_below(tmp_path)
    with pytest.raises(UserError) as refusal:
        pull(reference, tmp_path / "out", offline=True)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600 and files_below(tmp_path) == before


# ---- what may become of a folder and a cache


@pytest.fixture
def pulled(tmp_path: Path) -> tuple[DirectoryStore, Path]:
    store = DirectoryStore(tmp_path / "store")
    Releases(store).publish(FILES, {})
    return store, pull_from(store, "1", "", tmp_path / "out").folder


def _damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()  # else the cache's, whose disk space it shares, would change too
    if how != "removed":
        path.write_bytes(DAMAGE[how](data))


@pytest.mark.parametrize("how", [*DAMAGE, "removed"])
def test_a_pulled_folder_that_was_changed_is_noticed_and_exchanged(
    pulled: tuple[DirectoryStore, Path], how: str
) -> None:
    store, folder = pulled
    whole = files_below(folder)
    for name in RELEASED:
        _damage(folder / name, how)
        changed = files_below(folder)
        with pytest.raises(UserError, match=f"{name} in another state"):
            pull_from(store, "1", "", folder)
        assert files_below(folder) == changed
        assert pull_from(store, "1", "", folder, update=True).fetched == 0 and files_below(folder) == whole
    _damage(folder / "manifest.json", how)
    with pytest.raises(UserError, match="is not an empty folder"):
        pull_from(store, "1", "", folder)
    for added in ("evil.bin", "pictures/evil.bin", ".hidden"):
        other = pull_from(store, "1", "", folder.with_name(f"with-{len(added)}")).folder
        (other / added).write_bytes(b"x")
        with pytest.raises(UserError, match=f"{added} beside it"):
            pull_from(store, "1", "", other)
        with pytest.raises(UserError, match="would be lost"):
            pull_from(store, "1", "", other, update=True)


@pytest.mark.parametrize("how", [*DAMAGE, "removed"])
def test_a_cache_that_was_changed_is_noticed_and_filled_anew(pulled: tuple[DirectoryStore, Path], how: str) -> None:
    store, folder = pulled
    whole, contents = files_below(folder), Releases(store).manifest(Releases(store).resolve("1")).files
    for file in contents:
        [cached] = Path(os.environ[CACHE]).rglob(f"blobs/*/{file.content.sha256}")
        _damage(cached, how)
        fetched = pull_from(store, "1", "", folder.with_name(f"again-{Path(file.name).name}"))
        assert fetched.fetched == file.content.size and files_below(fetched.folder) == whole


def test_a_link_in_a_folder_is_not_followed(pulled: tuple[DirectoryStore, Path], tmp_path: Path) -> None:
    store, folder = pulled
    (tmp_path / "else").write_bytes(FILES["adapter.bin"])
    (folder / "adapter.bin").unlink()
    (folder / "adapter.bin").symlink_to("../else")  # as long as the file itself
    with pytest.raises(UserError, match="adapter.bin in another state"):
        pull_from(store, "1", "", folder)
    pull_from(store, "1", "", folder, update=True)
    assert not (folder / "adapter.bin").is_symlink()
    assert (tmp_path / "else").read_bytes() == FILES["adapter.bin"]
