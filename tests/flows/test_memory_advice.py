"""What a dry run advises makes the training fit."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from flows.memory_advice import fits
from flows.training_plan import Assumptions
from infra.settings import TrainSettings, load_settings
from moa_model.training_cost import Gathered, TrainingCost

GB = 10**9
ASSUMED = Assumptions()
# 28 GB of state on 80 GB, and 10 GB a sample: a reserve's tenth more.
COST = TrainingCost(
    base_parameters=5 * GB,
    expert_parameters=GB // 4,
    router_parameters=0,
    prompt_parameters=0,
    adapter_tensors=1,
    prior_flops=1,
    forward_flops=1,
    backward_flops=1,
    preserving=False,
    activation_bytes=10 * GB,
    cast_bytes=GB,
    gathered={
        "fsdp": Gathered(always=10**8, unit=10**8, unit_gradients=10**7, casts=0, weights=10 * GB),
        "fsdp-trained": Gathered(always=0, unit=10**7, unit_gradients=10**7, casts=GB, weights=GB),
    },
)


def _asked(changes: dict[str, str]) -> TrainSettings:
    names = {f"train.{name}": value for name, value in {"batch_size": "8", "workers": "2", **changes}.items()}
    return load_settings("demo", Path("work"), names).train


def _says(cost: TrainingCost, changes: dict[str, str]) -> str:
    says, *more = fits(cost, _asked(changes), ASSUMED)
    assert not more, "as many workers as asked for, or none"
    return says


def _advice(says: str) -> dict[str, str]:
    return dict(re.findall(r"--set train\.([a-z_]+)=(\w+)", says))


def test_what_fits_is_told_with_what_would_fit() -> None:
    assert _says(COST, {}) == "It fits: the H100's 80 GB hold up to 4 samples a GPU, and this takes 4."


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": "12"}, {"micro_batch_size", "sharding", "workers"}),
        ({"batch_size": "16"}, {"micro_batch_size", "workers"}),  # too many for parts, too
        ({"batch_size": "16", "sharding": "fsdp"}, {"micro_batch_size", "workers"}),
        ({"batch_size": "13"}, {"micro_batch_size", "workers"}),
    ],
)
def test_each_setting_that_is_named_mends_it_alone(changes: dict[str, str], named: set[str]) -> None:
    says = _says(COST, changes)
    assert says.startswith("It does not fit:") and set(_advice(says)) == named
    for name, value in _advice(says).items():
        assert _says(COST, changes | {name: value}).startswith("It fits"), name


@pytest.mark.parametrize(("workers", "more"), [("4", set()), ("2", set()), ("1", {"workers"})])
def test_a_state_that_fits_in_parts_alone(workers: str, more: set[str]) -> None:
    heavy = replace(COST, base_parameters=30 * GB)  # 120 GB
    says = _says(heavy, {"workers": workers})
    assert "do not hold a single sample" in says
    assert set(_advice(says)) == {"sharding", "micro_batch_size"} | more
    assert _says(heavy, {"workers": workers} | _advice(says)).startswith("It fits"), "together"


def test_what_never_fits() -> None:
    says = _says(replace(COST, activation_bytes=100 * GB), {})
    assert says.endswith("take a GPU with more memory, or a smaller base.")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, {"micro_batch_size": "4", "min_workers": "2"}),
        ({"batch_size": "12", "workers": "4"}, {"micro_batch_size": "4", "min_workers": "3"}),
    ],
)
def test_what_would_not_fit_after_a_loss_of_machines(changes: dict[str, str], named: dict[str, str]) -> None:
    """With as many workers as asked for it fits; each advice mends it alone."""
    asked = changes | {"min_workers": "1"}
    says, shrunk = fits(COST, _asked(asked), ASSUMED)
    assert says.startswith("It fits") and "as after a loss of machines, it does not fit" in shrunk
    assert _advice(shrunk) == named
    for name, value in named.items():
        assert len(fits(COST, _asked(asked | {name: value}), ASSUMED)) == 1, name


def test_a_state_that_fewer_machines_cannot_hold_at_all() -> None:
    """Where each holds a part, fewer hold larger parts: pieces of a batch do not mend that."""
    heavy = replace(COST, expert_parameters=4 * GB)
    asked = {"batch_size": "8", "workers": "8", "min_workers": "1", "sharding": "fsdp"}
    says, shrunk = fits(heavy, _asked(asked), ASSUMED)
    assert says.startswith("It fits") and set(_advice(shrunk)) == {"min_workers"}
    assert len(fits(heavy, _asked(asked | _advice(shrunk)), ASSUMED)) == 1
