"""A registry as it was laid out before models had names, written by that code: tests/data/registry-of-before."""

import shutil
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.pulling import pull_from
from infra.registry import Release, Releases, models, open_releases
from infra.storage import DirectoryStore, ObjectStore
from infra.upkeep import collect_garbage, find_garbage, verify

BEFORE = Path(__file__).parents[1] / "data" / "registry-of-before"
ONE, TWO, THREE = (Release(number + 1, id) for number, id in enumerate(
    ("e84b8f3f7fba3e45", "dbd603794485d6f6", "d0d6a1a959c7eadc")
))  # fmt: skip


@pytest.fixture
def old(store: ObjectStore) -> Releases:
    for path in BEFORE.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(BEFORE).as_posix(), path.read_bytes())
    return Releases(store)


def test_releases_and_names_are_read(old: Releases) -> None:
    assert models(old.store) == ["moa"] and old.all() == [ONE, TWO, THREE]
    assert [old.resolve(which) for which in ("1", TWO.id, "production")] == [ONE, TWO, THREE]
    assert [(move.number, move.release, move.why) for move in old.history("production")] == [
        (1, ONE, "passed the gate"),
        (2, THREE, "passed the gate"),
    ]
    card = old.card(TWO)
    assert card["start"] == f"release:{ONE.id}" and card["verdict"]["promote"] is False
    assert old.find(card["run_id"]) == TWO
    folder = BEFORE / "releases" / TWO.id
    assert old.read(TWO, "adapter.safetensors") == (folder / "adapter.safetensors").read_bytes()
    assert old.uri(TWO) == old.store.uri(f"releases/{TWO.id}/manifest.json")
    assert Releases(old.store, "other").all() == []
    assert open_releases(old.store, "production")[0].model == "moa"


def test_a_release_is_pulled_and_its_adapter_loads(old: Releases, tmp_path: Path) -> None:
    from moa_model import MoAAdapter

    pulled = pull_from(old.store, "production", "", tmp_path / "adapter")
    assert (pulled.model, pulled.release) == ("moa", THREE)
    folder = BEFORE / "releases" / THREE.id
    assert {path.name: path.read_bytes() for path in pulled.folder.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert MoAAdapter.from_pretrained(pulled.folder).config.image_dim == 2


def test_numbers_and_history_go_on(old: Releases) -> None:
    four = old.publish({"adapter.bin": b"new"}, {"run_id": "new", "start": f"release:{THREE.id}"})
    assert four.number == 4 and old.all() == [ONE, TWO, THREE, four]
    assert old.store.exists("releases/moa/0004/manifest.json") and not old.store.exists("releases/log/00000004.json")
    old.promote("production", four.id, "better")
    old.promote("production", ONE.id, "an old one again")
    assert [move.number for move in old.history("production")] == [1, 2, 3, 4]
    assert old.roll_back("production", "no").release == four and old.current("production") == four
    assert old.roll_back("production", "no").release == THREE
    assert old.roll_back("production", "no").release == ONE
    with pytest.raises(UserError, match="no earlier"):
        old.roll_back("production", "no")
    assert sum(key.startswith("aliases/") for key in old.store.list()) == 2


def test_what_was_altered_is_refused(old: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOA_CACHE", str(tmp_path / "empty"))
    assert verify(old) == []
    old.store.put(f"releases/{ONE.id}/manifest.json", b"{}")
    old.store.put(f"releases/{TWO.id}/adapter.safetensors", b"weights")
    old.store.delete(f"releases/{THREE.id}/README.md")
    fresh = Releases(old.store)
    for number, says in (("1", "altered"), ("2", "damaged"), ("3", "is missing")):
        with pytest.raises(UserError, match=says):
            fresh.pull(number, tmp_path / number)
        assert not (tmp_path / number).exists()
    problems = {one.address.rpartition("/")[2] for one in verify(Releases(old.store))}
    assert {"manifest.json", "adapter.safetensors", "README.md", "moa@production"} == problems


def test_nothing_of_it_is_garbage(tmp_path: Path) -> None:
    import os

    shutil.copytree(BEFORE, tmp_path / "store")
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (0, 0))
    store = DirectoryStore(tmp_path / "store")
    assert collect_garbage(store, find_garbage(store)) == 0 and verify(Releases(store)) == []
