"""Of the fault suite what `make test` has time for: a worker killed at a random step, a shard damaged meanwhile."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows import training_loop
from flows.run import Run
from flows.training_samples import StepBatch, StepBatches
from infra.errors import DamagedObject
from tests.faults.shard_damage import flip_a_bit
from tests.faults.steps_taken import noted
from tests.faults.training_runs import CHANGES, Training, prepare
from tests.training_here import train_here

STEPS = 12
SHORT = CHANGES | {"train.steps": str(STEPS), "train.workers": "1", "train.checkpoint_every": "2"}


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> dict[str, Any]:
    return train_here(Run(prepare(root, "short-calm", SHORT)))


@pytest.mark.timeout(600)
def test_a_worker_that_is_killed(root: Path, undisturbed: dict[str, Any], chance: random.Random) -> None:
    """By Ray, with real signals, and the same as in this process."""
    with Training(prepare(root, "short-killed", SHORT)) as training:
        training.start()
        training.kill_worker(training.workers_at(chance.randrange(STEPS))[0])
        assert training.result() == undisturbed


def test_a_shard_that_is_damaged_meanwhile(
    root: Path, undisturbed: dict[str, Any], chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training stops and names it; once it is put back, the same command goes on."""
    training = Training(prepare(root, "short-damaged", SHORT))
    store, row = training.run.store, chance.choice(training.run.training_shards())
    sound, moment = store.get(row.object_key), chance.randrange(3, STEPS // 2)

    with noted(training.settings.workspace):
        ready_made = training_loop.batches  # which notes what is taken

        def batches(source: StepBatches, steps: Sequence[int], *options: Any, **more: Any) -> Iterator[StepBatch]:
            for step, one in zip(steps, ready_made(source, steps, *options, **more), strict=True):
                if step == moment:
                    flip_a_bit(Path(store.uri(row.object_key)), chance)
                yield one

        with monkeypatch.context() as patched, pytest.raises(DamagedObject, match=f"{row.object_key} is damaged"):
            patched.setattr(training_loop, "batches", batches)
            train_here(training.run)
        store.put(row.object_key, sound)
        assert train_here(training.run) == undisturbed
    training.check_epochs()
