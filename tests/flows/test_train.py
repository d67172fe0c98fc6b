"""What a training leaves in the store when it is finished; the driver is tested by the journey and by its faults."""

from pathlib import Path

from flows.checkpoints import folder_of
from flows.run import Run
from flows.train import _is_result, _let_go
from tests.tiny_world import tiny_settings, write_models


def test_a_checkpoints_history_and_released_files_outlive_it() -> None:
    names = ["history.json", "released/adapter.safetensors", "optimizer.safetensors", "released.json", "x/released/y"]
    assert [name for name in names if _is_result(name)] == ["history.json", "released/adapter.safetensors"]


def test_checkpoints_are_let_go_and_nothing_else(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    run = Run(tiny_settings(tmp_path, tmp_path / "w"))
    kept = ["runs/abc/finished.json", "runs/abc/adapter.safetensors", f"{folder_of('abcd')}1/x", "runs/abc/history/1"]
    for key in (*kept, f"{folder_of('abc')}1/x", f"{folder_of('abc')}2/y", "runs/abc/attempts/0001/.marker"):
        run.store.put(key, b"x")
    _let_go(run, "abc")
    assert sorted(run.store.list("runs/")) == sorted(kept)
    _let_go(run, "abc")  # as after a kill in the middle
    assert sorted(run.store.list("runs/")) == sorted(kept)
