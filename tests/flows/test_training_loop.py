"""The same training whatever the number of workers, and what it does about steps and shards that are no good.

The loop is production's. Here Ray Train's local mode runs it: Ray's own processes would take ten times as long.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flows import training_loop
from flows.run import Run
from flows.train import finished_training
from flows.training_continuity import continuity
from flows.training_plan import flops_per_image
from infra.errors import UserError
from infra.settings import Settings
from moa_model import step_metrics
from moa_model.speed import clear_gradients
from preprocessing.precompute import Precomputer
from tests.faults.training_runs import Training, prepare
from tests.training_here import train_by_processes, train_here

CHANGES = {
    "train.steps": "12",
    "train.batch_size": "7",
    "train.checkpoint_every": "5",
    "train.warmup_steps": "0",
    "train.shuffle_shards": "2",
}
Curve = list[dict[str, float]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


def _place(workers: int, pieces: int = 0) -> dict[str, str]:
    """So many workers, so many samples at once; in double precision."""
    return {
        **CHANGES,
        "train.workers": str(workers),
        "train.micro_batch_size": str(pieces),
        "train.precision": "fp64",
    }


@pytest.fixture(scope="module")
def curve(root: Path) -> Curve:
    """Of one worker, whole batches."""
    return list(train_here(Run(prepare(root, "one", _place(1))))["curve"])


def _assert_same(found: Curve, expected: Curve) -> None:
    assert [row["step"] for row in expected] == [5, 10, 12] and expected[0]["loss"] != expected[-1]["loss"]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-9)


def test_the_curve_does_not_depend_on_the_workers(curve: Curve, root: Path) -> None:
    """Batches of 7, shared out and in pieces: in double precision the same but for rounding."""
    _assert_same(train_here(Run(prepare(root, "pieces", _place(1, 3))))["curve"], curve)
    _assert_same(train_by_processes(prepare(root, "two", _place(2)))["curve"], curve)


def test_the_mfu_is_written_down_where_the_devices_peak_is_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_metrics, "_PEAK_FLOPS", ((r"^$", 1e12),))  # this machine's processor
    settings = prepare(root, "rated", {**CHANGES, "train.workers": "1"})
    train_here(run := Run(settings))
    (events,) = {key.rpartition("/")[0] for key in run.store.list("runs/") if "/tensorboard/" in key}
    curves = EventAccumulator(run.store.uri(events)).Reload()
    rated, speed = (curves.Scalars(f"speed/{name}") for name in ("mfu", "images_per_second"))
    assert [one.step for one in rated] == [5, 10, 12]
    for one, other in zip(rated, speed, strict=True):
        assert one.value == pytest.approx(other.value * flops_per_image(settings) / 1e12, rel=1e-5)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_nor_does_it_on_three_in_pieces_or_four_by_ray(curve: Curve, root: Path) -> None:
    _assert_same(train_by_processes(prepare(root, "three", _place(3, 2)))["curve"], curve)
    with Training(prepare(root, "four", {**_place(4, 1), "ray.num_cpus": "5", "ray.object_store_mb": "80"})) as four:
        _assert_same(four.start().result()["curve"], curve)


@pytest.mark.faults
def test_sdxls_curve_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    """With a pooled text and sizes of its own in every row, and blocks computed again in the backward pass."""

    def settings(workers: int, pieces: int, sharding: str = "none") -> Settings:
        how = {"train.activation_checkpointing": "true", "train.sharding": sharding}
        return prepare(tmp_path, f"{sharding}-{workers}", {**_place(workers, pieces), **how}, sdxl=True)

    alone = list(train_here(Run(settings(1, 0)))["curve"])
    _assert_same(train_by_processes(settings(3, 2))["curve"], alone)
    _assert_same(train_by_processes(settings(2, 2, "fsdp"))["curve"], alone)


def test_sharded_workers_train_the_same(curve: Curve, root: Path) -> None:
    """Two workers of uneven shares, each with a part, beside one with everything: the same losses, and a release."""
    whole = prepare(root, "one", _place(1))
    parts = prepare(root, "parts", {**_place(2, 3), "train.sharding": "fsdp"})
    _assert_same(train_by_processes(parts)["curve"], curve)
    run = Run(parts)
    (adapter,) = [key for key in run.store.list("runs/") if key.endswith("adapter.safetensors")]
    (config,) = [key for key in run.store.list("runs/") if key.endswith("adapter_config.json")]
    other = Run(whole).store
    assert adapter in other.list("runs/"), "neither workers nor sharding are part of what names a training"
    weights, others = load(run.store.get(adapter)), load(other.get(adapter))
    assert other.get(config) == run.store.get(config)
    assert {name: one.shape for name, one in weights.items()} == {name: one.shape for name, one in others.items()}
    for name, weight in weights.items():
        assert torch.allclose(weight, others[name], rtol=1e-7, atol=1e-9), name


def test_what_shards_lack_is_computed_on_the_workers_own_device(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a loader's process "cuda" would be the first GPU, whichever Ray gave to this worker."""
    devices = []

    class Watched(Precomputer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            devices.append(arguments[3:])

    monkeypatch.setattr(training_loop, "Precomputer", Watched)
    train_here(Run(prepare(root, "device", {**_place(1), "train.steps": "1"})))
    assert devices == [(torch.device("cpu"),)]


def test_gradients_are_cleared_once_a_step_and_graphs_told_of_every_piece(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, uncompiled = [], training_loop.prepare

    def cleared(optimizer: torch.optim.Optimizer, mode: Any) -> None:
        clear_gradients(optimizer, mode)
        told.append((mode, "step"))

    monkeypatch.setattr(training_loop, "prepare", lambda *one, **how: uncompiled(*one, **how | {"compile": "off"}))
    monkeypatch.setattr(training_loop, "clear_gradients", cleared)
    monkeypatch.setattr(training_loop, "begin_pass", lambda mode: told.append((mode, "pass")))
    changes = {"train.steps": "1", "train.compile": "reduce-overhead"}
    train_here(Run(prepare(root, "graphs", {**_place(1, 3), **changes})))
    # Seven samples in three pieces each: the losses before, the step, the losses after.
    assert told == [("reduce-overhead", one) for one in (*["pass"] * 3, "step", *["pass"] * 6)]


@pytest.mark.parametrize(("after", "expected"), [(0, UserError), (1, torch.OutOfMemoryError)])
def test_a_batch_that_does_not_fit_is_the_users_to_mend(
    after: int, expected: type[Exception], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no step ever fitted; where one did, the next start may do what this one could not."""
    step = training_loop._Worker._step

    def full(worker: Any, number: int, one: Any) -> None:
        if number == after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB")
        step(worker, number, one)

    monkeypatch.setattr(training_loop._Worker, "_step", full)
    with pytest.raises(expected, match=r"(?i)out of memory") as caught:
        train_here(Run(prepare(root, f"full-{after}", _place(1))))
    assert (
        ("(CUDA out of memory): " in str(caught.value))
        == ("train.micro_batch_size" in str(caught.value))
        == (not after)
    )


@pytest.mark.faults
def test_a_sample_that_is_no_number_stops_the_training_and_is_named(root: Path) -> None:
    bad = "0000-00002"
    settings = prepare(root, "no-number", {**CHANGES, "train.workers": "2"}, no_number=bad)
    refused = train_by_processes(settings)["refused"]
    assert "not finite" in refused and bad in refused and "train.bad_step=skip" in refused


def test_a_sample_that_is_no_number_is_passed_over_if_asked(root: Path) -> None:
    """By workers with parts of everything: the gradients of both are no numbers then, and nothing else is harmed."""
    bad = "0000-00002"
    changes = {**CHANGES, "train.workers": "2", "train.sharding": "fsdp", "train.bad_step": "skip"}
    run = Run(prepare(root, "skipped", changes, no_number=bad))
    found = train_by_processes(run.settings)
    assert "adapter" in found and all(math.isfinite(row["loss"]) for row in found["curve"])
    finished = [key for key in run.store.list("runs/") if key.endswith("finished.json")]
    told = json.loads(run.store.get(finished[0]))
    skipped, account = told["skipped"], told["account"]
    assert skipped and all(bad in one["samples"] and "not finite" in one["fault"] for one in skipped)
    assert len(skipped) < 12
    # 12 batches of 7 are 6 epochs of the 14 samples; what was skipped, and nothing else, had no turn.
    assert (account["whole_epochs"], account["begun"], account["again"], account["proven"]) == (6, 0, 0, True)
    assert account["missing"] == 7 * len(skipped)


def test_a_damaged_shard_stops_or_is_passed_over_and_is_named(root: Path) -> None:
    settings = prepare(root, "damaged", {**CHANGES, "train.workers": "1"})
    run = Run(settings)
    row = run.training_shards()[1]
    run.store.put(row.object_key, b"other bytes")
    with pytest.raises(UserError, match=f"{row.object_key} is damaged"):
        train_here(run)
    without = settings.model_copy(update={"train": settings.train.model_copy(update={"damaged_shards": "skip"})})
    found = train_here(Run(without))
    assert found["damaged"] == [row.shard] and "adapter" in found
    finished = finished_training(run, found["run_id"])
    account, course = finished["account"], continuity(run.store, found["run_id"], finished)
    assert account["proven"] and account["missing"] == account["again"] == 6 * row.samples
    assert course is not None and not course.whole
    assert f"Shards passed over as damaged: {row.shard}." in course.sentences
