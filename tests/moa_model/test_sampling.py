from itertools import islice

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import given
from hypothesis import strategies as st

from moa_model import SampleOrder, draw, latents_from_moments, share

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any)


@given(seed=st.integers(0, 2**31), sizes=SIZES, window=st.integers(1, 12))
def test_each_epoch_is_every_sample_once_in_a_fixed_order(seed: int, sizes: list[int], window: int) -> None:
    order, again = SampleOrder(seed, sizes, window), SampleOrder(seed, sizes, window)
    everything = [(shard, number) for shard, size in enumerate(sizes) for number in range(size)]
    for epoch in (0, 7):
        positions = range(epoch * order.count, (epoch + 1) * order.count)
        assert sorted(order.at(position) for position in positions) == everything
    assert [again.at(position) for position in reversed(range(order.count))] == [
        order.at(position) for position in reversed(range(order.count))
    ], "the order depends on what was asked for before"


@given(sizes=SIZES, window=st.integers(1, 12), start=st.integers(0, 40))
def test_a_reader_needs_one_window_at_a_time_and_knows_the_next_shards(
    sizes: list[int], window: int, start: int
) -> None:
    order = SampleOrder(3, sizes, window)
    epoch = start // order.count
    met = [order.at(position)[0] for position in range(start, (epoch + 1) * order.count)]
    runs = list(dict.fromkeys(met))
    announced = list(islice(order.shards_from(start), len(sizes)))
    assert [shard for shard in announced if shard in runs][: len(runs)] == sorted(runs, key=announced.index)
    for at in range(len(met)):  # who is left behind does not come again: at most a window is open
        later = set(met[at:])
        assert len({shard for shard in met[:at] if shard in later}) <= window


def test_epochs_and_seeds_differ_and_no_samples_are_said() -> None:
    one, other = SampleOrder(0, [25, 25], 2), SampleOrder(1, [25, 25], 2)
    first, second = ([one.at(place) for place in range(start, start + 50)] for start in (0, 50))
    assert first != second != [other.at(place) for place in range(50)] != first
    with pytest.raises(ValueError, match="no samples"):
        SampleOrder(0, [0, 0], 1)
    with pytest.raises(ValueError, match="0 shards"):
        SampleOrder(0, [3], 0)


@given(batch=st.integers(1, 40), workers=st.integers(1, 9))
def test_shares_are_the_whole_batch_in_order_and_nearly_equal(batch: int, workers: int) -> None:
    shares = [range(batch)[share(batch, rank, workers)] for rank in range(workers)]
    assert [row for one in shares for row in one] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_draws_depend_on_seed_and_position_alone() -> None:
    whole, half = draw(3, range(40, 48), (4, 8, 8)), draw(3, range(44, 48), (4, 8, 8))
    for name in ("noise", "posterior", "timesteps", "dropped", "variant"):
        assert torch.equal(getattr(whole, name)[4:], getattr(half, name)), name
    assert not torch.equal(whole.noise, draw(3, range(41, 49), (4, 8, 8)).noise)
    assert not torch.equal(whole.noise, draw(4, range(40, 48), (4, 8, 8)).noise)
    assert not torch.equal(whole.noise, whole.posterior)
    assert whole.noise.dtype == torch.float32 and abs(whole.noise.std() - 1) < 0.05


def test_draws_stay_in_their_ranges() -> None:
    many = draw(0, range(20_000), (1, 1, 1), max_timestep=3, condition_dropout=0.1)
    assert many.timesteps.unique().tolist() == [0, 1, 2, 3]
    assert abs(many.dropped.float().mean() - 0.1) < 0.01
    assert 0 <= many.variant.min() and many.variant.max() < 1


@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_timesteps_follow_their_distribution(exponent: float) -> None:
    drawn = draw(0, range(50_000), (1, 1, 1), max_timestep=899, timestep_exponent=exponent).timesteps
    assert drawn.min() >= 0 and drawn.max() == 899
    for limit in (300, 600):  # P(900 u^e < x) = (x / 900)^(1 / e)
        assert (drawn < limit).double().mean().item() == pytest.approx((limit / 900) ** (1 / exponent), abs=0.01)


def test_latents_are_the_vaes_posterior() -> None:
    moments, noise = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 4, 4)
    posterior = DiagonalGaussianDistribution(moments)
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(latents_from_moments(moments, noise, 0.18215), expected)
    assert latents_from_moments(moments.half(), noise, 1.0).dtype == torch.float32
