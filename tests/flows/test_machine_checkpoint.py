"""Each machine fetches a checkpoint once, and all its workers read it."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch.distributed as distributed

from flows import machine_checkpoint
from flows.checkpoints import CheckpointWriter
from flows.machine_checkpoint import checkpoint_here
from infra.errors import UserError
from infra.ports import free_ports
from infra.storage import DirectoryStore

RUN = "0123456789abcdef"


def _worker(
    root: Path, rank: int, machines: list[int], port: int, empty: bool, results: "multiprocessing.Queue"
) -> None:
    """What it finds, and whether the folder is still there for it while others may have left."""
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(machines))
    first = machines.index(machines[rank]) == rank
    store = DirectoryStore(root / "none") if empty else DirectoryStore(root)
    with checkpoint_here(store, RUN, root / "resume", machines[rank], first, len(machines)) as (folder, step):
        if not first:
            time.sleep(1.0)  # the one that fetched it has long read
        results.put((rank, str(folder), step, (folder / "state.json").read_text() if step else ""))
    distributed.destroy_process_group()


def _found(root: Path, machines: list[int], empty: bool = False) -> dict[int, tuple[str, int, str]]:
    spawning, (port,) = multiprocessing.get_context("spawn"), free_ports(1)
    results = spawning.Queue()
    workers = [
        spawning.Process(target=_worker, args=(root, rank, machines, port, empty, results))
        for rank in range(len(machines))
    ]
    for one in workers:
        one.start()
    found = {rank: rest for rank, *rest in (results.get(timeout=120) for _ in workers)}
    for one in workers:
        one.join(60)
        assert one.exitcode == 0
    return {rank: (folder, step, state) for rank, (folder, step, state) in found.items()}


def _save(root: Path, step: int) -> DirectoryStore:
    store = DirectoryStore(root)
    CheckpointWriter(store, RUN, 9, 0, lambda _: None).finish(step, lambda: [("state.json", b"%d" % step)], 1.0)
    return store


def test_alone_it_is_fetched_and_goes_again(tmp_path: Path) -> None:
    store = _save(tmp_path, 300)
    below = tmp_path / "resume"
    with checkpoint_here(store, RUN, below, 0, True, 1) as (folder, step):
        assert step == 300 and (folder / "state.json").read_text() == "300"
    assert not folder.exists()
    with checkpoint_here(store, "another", below, 0, True, 1) as (folder, step):
        assert step == 0


def test_three_workers_on_two_machines_share_two_folders(tmp_path: Path) -> None:
    _save(tmp_path, 200)
    found = _found(tmp_path, [7, 7, 8])
    assert {(step, state) for _, step, state in found.values()} == {(200, "200")}
    assert found[0][0] == found[1][0] != found[2][0], "one folder a machine"
    assert not any(Path(folder).exists() for folder, _, _ in found.values())
    assert {step for _, step, _ in _found(tmp_path, [0, 0], empty=True).values()} == {0}


def test_what_a_killed_process_left_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    store, below = _save(tmp_path, 100), tmp_path / "resume"
    (below / "of-a-killed-one").mkdir(parents=True)
    (below / "of-a-killed-one" / "state.json").write_bytes(b"x")
    with (
        checkpoint_here(store, RUN, below, 0, True, 1) as (first, _),
        checkpoint_here(store, RUN, below, 0, True, 1) as (
            second,
            step,
        ),
    ):
        assert {path for path in below.iterdir()} == {first, second} and first != second
        assert step == 100 and (first / "state.json").read_text() == (second / "state.json").read_text() == "100"
    assert list(below.iterdir()) == []


def test_a_full_disk_is_told_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine_checkpoint, "fetch_checkpoint", full)
    below = tmp_path / "resume"
    with (
        pytest.raises(UserError, match=f"no room left on the disk of {below}"),
        checkpoint_here(DirectoryStore(tmp_path), RUN, below, 0, True, 1),
    ):
        pass
    assert list(below.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="choose another --workspace"),
        checkpoint_here(DirectoryStore(tmp_path), RUN, tmp_path / "file" / "resume", 0, True, 1),
    ):
        pass
