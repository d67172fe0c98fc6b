"""A machine comes while fewer workers than wanted train: they save first, and more go on there. `make test-faults`."""

from collections.abc import Callable

import pytest

from tests.faults.ray_cluster import RayCluster
from tests.faults.training_runs import Training

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

STEPS = 400
CHANGES = {"train__steps": str(STEPS), "train__checkpoint_every": str(STEPS)}  # none is due before the end


def test_a_machine_that_comes_costs_no_work(trainings: Callable[..., Training]) -> None:
    with RayCluster(2, head_cpus=0) as machines:
        place = {"train__min_workers": "1", "train__resize_seconds": "1", "ray__address": machines.address}
        training = trainings("grows", **CHANGES, **place).start()
        training.until(lambda: any(one.step >= 20 for one in training.taken()), "at work")
        machines.add_node()
        training.result()
    alone, grown = ([one.step for one in training.taken() if one.workers == workers] for workers in (1, 2))
    assert min(alone) == 0 and max(grown) == STEPS - 1
    assert min(grown) >= 20, "what the one worker had done is done again"
