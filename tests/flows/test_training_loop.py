"""The same training whatever the number of workers, and what it does about steps and shards that are no good."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.run import Run
from flows.session import prepare_environment
from infra.ray_session import ray_session
from infra.settings import load_settings
from tests.faults.training_driver import prepare, train

CHANGES = {
    "train.steps": "12",
    "train.batch_size": "7",
    "train.checkpoint_every": "5",
    "train.warmup_steps": "0",
    "train.shuffle_shards": "2",
}


# How many workers, and samples at once.
WORKERS = [(1, 0), (2, 0), (3, 2), (4, 1)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(autouse=True)
def ray() -> Iterator[None]:
    """One for each test: a training that is refused is given up with its session."""
    prepare_environment()
    with ray_session(
        load_settings("demo").ray.model_copy(update={"address": "", "num_cpus": 5, "object_store_mb": 80})
    ):
        yield


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_curve_does_not_depend_on_the_workers(root: Path) -> None:
    """Batches of 7 on 1 to 4 workers, whole and in pieces: in double precision the same but for rounding."""
    curves = {}
    for workers, pieces in WORKERS:
        place = {"train.workers": str(workers), "train.micro_batch_size": str(pieces), "train.precision": "fp64"}
        settings = prepare(root, f"workers-{workers}", {**CHANGES, **place})
        curves[workers] = train(Run(settings))["curve"]
    assert [row["step"] for row in curves[1]] == [5, 10, 12]
    assert curves[1][0]["loss"] != curves[1][-1]["loss"]
    for workers, curve in curves.items():
        for row, expected in zip(curve, curves[1], strict=True):
            assert row == pytest.approx(expected, rel=1e-9), workers


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_sample_that_is_no_number_stops_the_training_and_is_named(root: Path) -> None:
    bad = "0000-00002"
    settings = prepare(root, "no-number", {**CHANGES, "train.workers": "2"}, no_number=bad)
    refused = train(Run(settings))["refused"]
    assert "not finite" in refused and bad in refused and "train.bad_step=skip" in refused


@pytest.mark.timeout(600)
def test_a_sample_that_is_no_number_is_passed_over_if_asked(root: Path) -> None:
    bad = "0000-00002"
    changes = {**CHANGES, "train.workers": "1", "train.bad_step": "skip"}
    going_on = prepare(root, "skipped", changes, no_number=bad)
    found = train(Run(going_on))
    assert "adapter" in found and all(math.isfinite(row["loss"]) for row in found["curve"])
    run = Run(going_on)
    finished = [key for key in run.store.list("runs/") if key.endswith("finished.json")]
    skipped = json.loads(run.store.get(finished[0]))["skipped"]
    assert skipped and all(bad in one["samples"] and "not finite" in one["fault"] for one in skipped)
    assert len(skipped) < 12


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_damaged_shard_stops_or_is_passed_over_and_is_named(root: Path) -> None:
    settings = prepare(root, "damaged", {**CHANGES, "train.workers": "1"})
    run = Run(settings)
    row = run.training_shards()[1]
    run.store.put(row.object_key, b"other bytes")
    assert f"{row.object_key} is damaged" in train(Run(settings))["refused"]
    without = settings.model_copy(update={"train": settings.train.model_copy(update={"damaged_shards": "skip"})})
    found = train(Run(without))
    assert found["damaged"] == [row.shard] and "adapter" in found
