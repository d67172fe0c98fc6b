"""What a training step sees: which samples, and which random numbers.

Both are pure functions of (seed, position), where sample k of the training, counted over all epochs, stands at position
k. Step s of batch size B has the positions s·B … s·B + B − 1, on however many workers: each takes a run of them, and a
restart with another number of workers goes on at exactly the next position.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SHARDS, _SAMPLES, _NUMBERS = range(3)  # three families of random streams, none of which meets another
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_KEPT_WINDOWS = 4  # orders of windows in memory: neighbours of where the reading is


def share(batch_size: int, rank: int, workers: int) -> slice:
    """Rows of a global batch that worker ``rank`` of ``workers`` takes, in order; shares differ by one at most."""
    return slice(rank * batch_size // workers, (rank + 1) * batch_size // workers)


class SampleOrder:
    """Which sample of which shard stands at which position.

    An epoch is every sample once: the shards in a new order, cut into windows of ``window`` shards, in each of which
    all samples are mixed. Whoever reads in this order needs one window's shards at a time, and all shards in one window
    is a full shuffle. Nothing is stored but the windows that were asked for last.
    """

    def __init__(self, seed: int, sizes: Sequence[int], window: int) -> None:
        """``sizes``: samples of each shard. Raises ValueError where there is no sample, or no shard in a window."""
        if sum(sizes) < 1:
            raise ValueError("there are no samples to train on")
        if window < 1 or min(sizes) < 0:
            raise ValueError(f"{window} shards in a window, {min(sizes)} samples in a shard")
        self.seed, self.sizes, self.window = seed, tuple(sizes), window
        self.count = sum(sizes)
        self._epochs: OrderedDict[int, tuple[list[int], list[int]]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], list[tuple[int, int]]] = OrderedDict()
        self._last: tuple[int, list[tuple[int, int]]] = 0, []

    def at(self, position: int) -> tuple[int, int]:
        """(shard, sample in it) at a position ≥ 0."""
        first, found = self._last  # mostly it is the same window as the last time
        if not 0 <= position - first < len(found):
            epoch, place = divmod(position, self.count)
            ends = self._epoch(epoch)[1]
            window = bisect_right(ends, place)
            first = epoch * self.count + (ends[window - 1] if window else 0)
            self._last = first, found = first, self._window(epoch, window)
        return found[position - first]

    def shards_from(self, position: int) -> Iterator[int]:
        """The shards in the order in which their windows come, from that of ``position`` on, without end."""
        epoch, place = divmod(position, self.count)
        first = bisect_right(self._epoch(epoch)[1], place)
        while True:
            yield from self._epoch(epoch)[0][first * self.window :]
            epoch, first = epoch + 1, 0

    def _epoch(self, epoch: int) -> tuple[list[int], list[int]]:
        """The epoch's shards in order, and how many samples lie before the end of each window."""

        def make() -> tuple[list[int], list[int]]:
            order = np.random.default_rng([self.seed, _SHARDS, epoch]).permutation(len(self.sizes)).tolist()
            starts = range(0, len(order), self.window)
            each = (sum(self.sizes[shard] for shard in order[start : start + self.window]) for start in starts)
            return order, list(accumulate(each))

        return _kept(self._epochs, epoch, make)

    def _window(self, epoch: int, window: int) -> list[tuple[int, int]]:
        """Shard and number of each of a window's samples, in order."""

        def make() -> list[tuple[int, int]]:
            chosen = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
            sizes = [self.sizes[shard] for shard in chosen]
            mixed = np.random.default_rng([self.seed, _SAMPLES, epoch, window]).permutation(sum(sizes))
            shards = np.repeat(np.array(chosen), sizes)
            samples = np.concatenate([np.arange(size) for size in sizes])
            return list(zip(shards[mixed].tolist(), samples[mixed].tolist(), strict=True))

        return _kept(self._windows, (epoch, window), make)


def _kept(cache: "OrderedDict[_Key, _Value]", key: _Key, make: Callable[[], _Value]) -> _Value:
    """The value made for a key, and those of the few keys asked for last."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > _KEPT_WINDOWS:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


@dataclass(frozen=True)
class Draw:
    """The random numbers of some samples, a row for each."""

    posterior: Float[Tensor, "B C H W"]
    """For the VAE's posterior: latents = mean + std · posterior."""
    noise: Float[Tensor, "B C H W"]
    timesteps: Int[Tensor, " B"]
    dropped: Bool[Tensor, " B"]
    """Samples that lose text and subjects, for classifier-free guidance."""
    variant: Float[Tensor, " B"]
    """0 … 1: which of a subject's precomputed image features to take."""


def draw(
    seed: int,
    positions: Sequence[int],
    latent_shape: tuple[int, int, int],
    max_timestep: int = 800,
    condition_dropout: float = 0.1,
    timestep_exponent: float = 1.0,
) -> Draw:
    """Draw for the samples at some positions, on the CPU: a row depends on its own position and the seed alone.

    Timesteps lie in 0 … ``max_timestep``, both included: the largest times u ** ``timestep_exponent`` for a uniform u.
    At 1 they are uniform, as in the paper; below 1 the noisy ones come more often, where a subject's colours are open.
    """
    posterior = torch.empty(len(positions), *latent_shape)
    noise, uniform = torch.empty_like(posterior), torch.empty(len(positions), 3, dtype=torch.float64)
    for row, position in enumerate(positions):
        stream = np.random.default_rng([seed, _NUMBERS, position])
        uniform[row] = torch.from_numpy(stream.random(3))
        stream.standard_normal(out=posterior[row].numpy(), dtype=np.float32)
        stream.standard_normal(out=noise[row].numpy(), dtype=np.float32)
    return Draw(
        posterior=posterior,
        noise=noise,
        timesteps=((max_timestep + 1) * uniform[:, 0] ** timestep_exponent).long(),
        dropped=uniform[:, 1] < condition_dropout,
        variant=uniform[:, 2].float(),
    )


def latents_from_moments(
    moments: Float[Tensor, "B C2 H W"],
    posterior: Float[Tensor, "B C H W"],
    scaling_factor: float,
    shift_factor: float = 0.0,
) -> Float[Tensor, "B C H W"]:
    """Sample the VAE's posterior from its moments (mean and log variance, ``AutoencoderKL``'s order) and scale."""
    mean, log_variance = moments.float().chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * posterior
    return (latents - shift_factor) * scaling_factor
