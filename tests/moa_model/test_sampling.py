import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import given
from hypothesis import strategies as st

from moa_model import draw, global_batch, latents_from_moments, sample_order


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 50), count=st.integers(1, 60))
def test_an_epoch_is_every_sample_once_in_a_fixed_order(seed: int, epoch: int, count: int) -> None:
    order = sample_order(seed, epoch, count)
    assert sorted(order) == list(range(count))
    assert order == sample_order(seed, epoch, count)


@given(batch=st.integers(1, 9), count=st.integers(1, 7))
def test_batches_are_the_epochs_one_after_another(batch: int, count: int) -> None:
    seen = [index for step in range(2 * count) for index in global_batch(4, step, batch, count)]
    epochs = [index for epoch in range(2 * batch) for index in sample_order(4, epoch, count)]
    assert seen == epochs


def test_epochs_and_seeds_differ() -> None:
    assert sample_order(0, 0, 50) != sample_order(0, 1, 50) != sample_order(1, 1, 50)
    with pytest.raises(ValueError, match="no samples"):
        global_batch(0, 0, 4, 0)


def test_draws_depend_on_seed_and_step_alone_and_split_over_workers() -> None:
    whole = draw(3, 7, 8, (4, 8, 8))
    again = draw(3, 7, 8, (4, 8, 8)).rows(4, 8)
    assert torch.equal(whole.noise[4:], again.noise)
    assert torch.equal(whole.timesteps[4:], again.timesteps)
    assert not torch.equal(whole.noise, draw(3, 8, 8, (4, 8, 8)).noise)
    assert not torch.equal(whole.noise, draw(4, 7, 8, (4, 8, 8)).noise)
    assert not torch.equal(whole.noise, whole.posterior)


def test_draws_stay_in_their_ranges() -> None:
    many = draw(0, 0, 20_000, (1, 1, 1), max_timestep=3, condition_dropout=0.1)
    assert many.timesteps.unique().tolist() == [0, 1, 2, 3]
    assert abs(many.dropped.float().mean() - 0.1) < 0.01
    assert 0 <= many.variant.min() and many.variant.max() < 1


@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_timesteps_follow_their_distribution(exponent: float) -> None:
    drawn = draw(0, 0, 50_000, (1, 1, 1), max_timestep=899, timestep_exponent=exponent).timesteps
    assert drawn.min() >= 0 and drawn.max() == 899
    for limit in (300, 600):  # P(900 u^e < x) = (x / 900)^(1 / e)
        assert (drawn < limit).double().mean().item() == pytest.approx((limit / 900) ** (1 / exponent), abs=0.01)


def test_latents_are_the_vaes_posterior() -> None:
    moments, noise = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 4, 4)
    posterior = DiagonalGaussianDistribution(moments)
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(latents_from_moments(moments, noise, 0.18215), expected)
    assert latents_from_moments(moments.half(), noise, 1.0).dtype == torch.float32
