"""What counts as a complete checkpoint, which are kept, and what happens when one cannot be written."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import checkpoints
from flows.checkpoints import CheckpointWriter, fetch_checkpoint, folder_of, latest_step
from infra.storage import DirectoryStore, Key, Pieces

RUN = "0123456789abcdef"


def _files(content: str) -> Iterator[tuple[str, bytes]]:
    yield "state.json", content.encode()
    yield "released/adapter_config.json", content.encode()


def _written(store: DirectoryStore, steps: dict[int, float], keep_last: int = 9, keep_every: int = 0) -> list[str]:
    said: list[str] = []
    writer = CheckpointWriter(store, RUN, keep_last, keep_every, said.append)
    *first, last = steps
    for step in first:
        writer.save(step, lambda step=step: _files(str(step)), steps[step])  # type: ignore[misc]
    writer.finish(last, lambda: _files(str(last)), steps[last])
    return said


def _steps(store: DirectoryStore) -> list[int]:
    return sorted({int(key.split("/step-")[1][:8]) for key in store.list(folder_of(RUN))})


def test_the_latest_complete_one_comes_back(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    assert _written(store, {100: 1.0, 300: 1.0, 200: 1.0}) == []
    assert fetch_checkpoint(store, RUN, tmp_path / "got") == latest_step(store, RUN) == 300
    assert (tmp_path / "got" / "state.json").read_text() == "300"
    assert (tmp_path / "got" / "released" / "adapter_config.json").read_text() == "300"


def test_only_the_files_that_are_wanted_come(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    _written(store, {100: 1.0})
    (tmp_path / "store" / folder_of(RUN) / "step-00000100" / "state.json").write_text("damaged")
    assert fetch_checkpoint(store, RUN, tmp_path / "got", lambda name: name.startswith("released/")) == 100
    assert [path.name for path in (tmp_path / "got").rglob("*.json")] == ["adapter_config.json"]
    assert fetch_checkpoint(store, RUN, tmp_path / "whole") == 0


def test_it_is_told_when_one_is_there(tmp_path: Path) -> None:
    store, go, there, found = DirectoryStore(tmp_path / "store"), threading.Event(), threading.Event(), list[int]()

    def told(_: object) -> None:
        found.append(latest_step(store, RUN))
        there.set()

    writer = CheckpointWriter(store, RUN, 9, 0, lambda said: None)
    writer.when_written(told)
    assert found == [0]  # nothing is being written
    there.clear()

    def held() -> Iterator[tuple[str, bytes]]:
        assert go.wait(60)
        yield from _files("100")

    writer.save(100, held, 1.0)
    writer.when_written(told)
    assert found == [0]
    go.set()
    assert there.wait(60) and found == [0, 100]
    writer.finish(200, lambda: _files("200"), 1.0)


@pytest.mark.parametrize(
    "damage", ["no list", "file missing", "file cut short", "list cut short", "list of another kind", "a path outside"]
)
def test_one_that_a_kill_cut_short_is_passed_over(tmp_path: Path, damage: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    _written(store, {100: 1.0, 200: 1.0})
    broken = tmp_path / "store" / folder_of(RUN) / "step-00000200"
    if damage == "no list":
        (broken / "complete.json").unlink()
    elif damage == "file missing":
        (broken / "state.json").unlink()
    elif damage == "file cut short":
        (broken / "state.json").write_text("2")
    elif damage == "list cut short":
        (broken / "complete.json").write_text('{"files": {"state.json": ')
    elif damage == "list of another kind":
        (broken / "complete.json").write_text("[1, 2]")
    else:
        (broken / "complete.json").write_text(json.dumps({"files": {"../../../../x": ""}, "loss": 1.0}))
    assert fetch_checkpoint(store, RUN, tmp_path / "got") == 100
    assert (tmp_path / "got" / "state.json").read_text() == "100"


def test_what_a_kill_left_half_written_goes_when_the_next_writer_begins(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    _written(store, {100: 1.0})
    half = tmp_path / folder_of(RUN) / "step-00000100" / ".partial-0123"
    half.write_bytes(b"half")
    _written(store, {200: 1.0})
    assert not half.exists() and _steps(store) == [100, 200]


def test_none_at_all(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    assert fetch_checkpoint(store, RUN, tmp_path / "got") == latest_step(store, RUN) == 0


def test_the_last_few_the_best_and_every_nth_are_kept(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    losses = {100: 0.9, 200: 0.1, 300: 0.8, 400: 0.7, 500: 0.6, 600: 0.5, 700: 0.4}
    _written(store, losses, keep_last=2, keep_every=300)
    assert _steps(store) == [200, 300, 600, 700]
    _written(store, {800: 0.9}, keep_last=1)  # another process: what is best is known from the store
    assert _steps(store) == [200, 800]


class _Failing(DirectoryStore):
    """Fails when it is asked to write a certain file, so many times."""

    def __init__(self, root: Path, name: str, times: int, error: Exception) -> None:
        super().__init__(root)
        self.name, self.times, self.error = name, times, error

    def put(self, key: Key, data: Pieces) -> None:
        if str(key).endswith(self.name) and self.times:
            self.times -= 1
            raise self.error
        super().put(key, data)


@pytest.mark.parametrize("name", ["state.json", "released/adapter_config.json", "complete.json"])
def test_what_cannot_be_written_costs_itself_and_is_said(name: str, tmp_path: Path) -> None:
    store = _Failing(tmp_path / "store", name, 1, OSError(28, "No space left on device"))
    said, left = list[str](), list[list[int]]()
    writer = CheckpointWriter(store, RUN, 9, 0, lambda sentence: (said.append(sentence), left.append(_steps(store))))
    writer.save(100, lambda: _files("100"), 1.0)
    writer.finish(200, lambda: _files("200"), 1.0)
    assert len(said) == 1 and "does not fit on the store's disk" in said[0]
    assert left == [[]], "what was written of it does not keep the disk full"
    assert fetch_checkpoint(store, RUN, tmp_path / "got") == 200 and _steps(store) == [200]


def test_the_last_one_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(checkpoints.time, "sleep", pauses.append)
    store = _Failing(tmp_path, "state.json", 3, ConnectionError("503"))
    said = _written(store, {100: 1.0})
    assert latest_step(store, RUN) == 100 and pauses == [1.0, 2.0, 4.0]
    assert all("ConnectionError: 503); it is tried again" in sentence for sentence in said) and len(said) == 3
    hopeless = _Failing(tmp_path, "state.json", 99, ConnectionError("503"))
    with pytest.raises(ConnectionError):
        _written(hopeless, {200: 1.0})
    assert sum(pauses[3:]) == 63.0, "for a minute"


class _Untidy(DirectoryStore):
    """Cannot remove anything."""

    def delete(self, key: Key) -> None:
        raise PermissionError(13, "Access denied")


def test_old_ones_that_cannot_be_removed_do_not_cost_the_new_one(tmp_path: Path) -> None:
    store = _Untidy(tmp_path / "store")
    said = _written(store, {100: 3.0, 200: 2.0, 300: 1.0}, keep_last=1)
    assert latest_step(store, RUN) == 300 and fetch_checkpoint(store, RUN, tmp_path / "got") == 300
    assert len(said) == 2 and all("older checkpoints could not be removed (PermissionError" in one for one in said)


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"files": {}}', '{"files": {}, "loss": "low"}'])
def test_a_damaged_one_goes_like_any_other(content: str, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    _written(store, {100: 1.0, 200: 2.0})
    store.put(f"{folder_of(RUN)}step-00000100/complete.json", content.encode())
    assert _written(store, {300: 3.0, 400: 4.0}, keep_last=2) == []
    assert _steps(store) == [200, 300, 400], "the best of those that can be read, and the last two"


def test_the_training_goes_on_while_one_is_written(tmp_path: Path) -> None:
    store, may_write = DirectoryStore(tmp_path), threading.Event()
    writer = CheckpointWriter(store, RUN, 1, 0, lambda _: None)

    def slow() -> Iterator[tuple[str, bytes]]:
        assert may_write.wait(timeout=60)
        yield "state.json", b"1"

    writer.save(1, slow, 1.0)
    assert latest_step(store, RUN) == 0, "it is not visible before it is whole"
    may_write.set()
    writer.finish(2, slow, 1.0)
    assert latest_step(store, RUN) == 2
