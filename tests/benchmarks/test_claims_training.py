"""A training of an arm can be killed and goes on where it was; arms of one seed see the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.benchmarks.claims import training
from tests.benchmarks.claims.plan import MOA, arm
from tests.benchmarks.claims.training import PriorPredictions, batch_of, kept_folder, train, trained_folder
from tests.benchmarks.claims.world import World
from tests.benchmarks.claims_world import tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def _quiet(step: int, loss: float) -> None:
    assert loss > 0


@pytest.mark.parametrize("name", ["moa", "fastcomposer", "ip-adapter"])
def test_a_training_in_two_parts_is_the_training_in_one(world: World, tmp_path: Path, name: str):
    one = arm(name)
    train(world, tmp_path / "whole", one, 0, 4, _quiet)
    train(world, tmp_path / "parts", one, 0, 2, _quiet)
    train(world, tmp_path / "parts", one, 0, 4, _quiet)
    whole, parts = (
        load_file(trained_folder(tmp_path / place, one, 0) / "state.safetensors") for place in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and int(whole["step"]) == 4
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], msg=key)


def test_what_is_kept_is_not_trained_again(world: World, tmp_path: Path):
    train(world, tmp_path, MOA, 0, 2, _quiet)
    kept = kept_folder(tmp_path, MOA, 0, 2)
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    train(world, tmp_path, MOA, 0, 2, _quiet)
    assert before == {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}


def test_arms_of_one_seed_see_the_same_samples_and_noise_and_their_own_timesteps(world: World):
    base = world.base()
    ours, theirs = (batch_of(world, base, one, 1, 5) for one in (MOA, arm("fastcomposer")))
    assert torch.equal(ours.latents, theirs.latents) and torch.equal(ours.noise, theirs.noise)
    assert torch.equal(ours.dropped, theirs.dropped)
    assert (ours.timesteps <= theirs.timesteps).all() and ours.timesteps.max() <= MOA.max_timestep
    assert not torch.equal(ours.noise, batch_of(world, base, MOA, 2, 5).noise)


def test_the_priors_prediction_is_computed_once(world: World, tmp_path: Path):
    base = world.base()
    module = training.MoAArm(MOA, base.unet, base.scheduler, world.image_dim)
    batch = batch_of(world, base, MOA, 0, 3)
    first = PriorPredictions(tmp_path, MOA, 0, world.latent_shape).of(3, batch, module)
    again = PriorPredictions(tmp_path, MOA, 0, world.latent_shape).of(3, batch, None)  # no module is asked
    assert torch.equal(first, again)
    exact = PriorPredictions._predict(batch, module)
    torch.testing.assert_close(first, exact, atol=2e-3, rtol=2e-3)


def test_settings_that_matter_change_the_folder_and_others_do_not():
    from dataclasses import replace

    assert replace(MOA, lambda_object=0.5).training_key() != MOA.training_key()
    assert replace(MOA, title="another", prior_only_above=700).training_key() == MOA.training_key()
    assert MOA.training_key() == "bb238cd1"  # hours of trainings lie under it
    assert arm("router-open").training_key() != MOA.training_key()
