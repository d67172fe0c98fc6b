"""The clock of a training, and the average of its weights."""

import pytest
import torch

from infra.zoo.schedule import Schedule, averaged


def test_the_rate_rises_then_falls() -> None:
    schedule = Schedule(minutes=1.0, peak=2.0, warmup=0.1)
    assert schedule.rate(0.0) == 0 and schedule.rate(60.0) == pytest.approx(0, abs=1e-9)
    assert schedule.rate(3.0) < schedule.rate(6.0) > schedule.rate(30.0) > schedule.rate(50.0)
    assert schedule.rate(30.0) == pytest.approx(1.0)


def test_steps_end_and_set_every_group() -> None:
    one, two = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [two], "rate_factor": 0.5}], lr=9.0)
    steps = []
    for step in Schedule(minutes=0.0005, peak=1.0).steps(optimizer):
        steps.append(step)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first <= 1.0 and second == pytest.approx(first / 2)
    assert steps == list(range(len(steps))) and steps


def test_a_short_training_does_not_end_on_its_beginnings() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = averaged(model, 0.999)
    for _ in range(200):
        torch.nn.init.ones_(model.weight)
        average.update_parameters(model)
    # With 0.999 from the start, a fifth would still be the zero of the beginning's neighbours.
    assert average.module.weight.item() > 0.95
