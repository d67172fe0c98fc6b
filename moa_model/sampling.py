"""What a training step sees: which samples, and which random numbers.

Both are pure functions of (seed, step) for the whole global batch, so that one worker or 64 train on the same numbers
and a restart continues at exactly the next sample: a worker draws for all and takes its own rows.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def sample_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of ``count`` samples in one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()


def global_batch(seed: int, step: int, batch_size: int, count: int) -> list[int]:
    """Indices of the samples of global step ``step`` (from 0); a batch may reach over the end of an epoch."""
    if count < 1:
        raise ValueError("there are no samples to train on")
    positions = range(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: sample_order(seed, epoch, count) for epoch in {position // count for position in positions}}
    return [orders[position // count][position % count] for position in positions]


@dataclass(frozen=True)
class Draw:
    """The random numbers of one training step, a row per sample of the global batch."""

    posterior: Float[Tensor, "B C H W"]
    """For the VAE's posterior: latents = mean + std · posterior."""
    noise: Float[Tensor, "B C H W"]
    timesteps: Int[Tensor, " B"]
    dropped: Bool[Tensor, " B"]
    """Samples that lose text and subjects, for classifier-free guidance."""
    variant: Float[Tensor, " B"]
    """0 … 1: which of a subject's precomputed image features to take."""

    def rows(self, start: int, stop: int) -> Self:
        """The rows of one worker."""
        return type(self)(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


def draw(
    seed: int,
    step: int,
    count: int,
    latent_shape: tuple[int, int, int],
    max_timestep: int = 800,
    condition_dropout: float = 0.1,
    timestep_exponent: float = 1.0,
) -> Draw:
    """Draw a global batch of ``count`` on the CPU.

    Timesteps lie in 0 … ``max_timestep``, both included: the largest times u ** ``timestep_exponent`` for a uniform u.
    At 1 they are uniform, as in the paper; below 1 the noisy ones come more often, where a subject's colours are open.
    """
    entropy = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0] >> np.uint64(1)))
    return Draw(
        posterior=torch.randn(count, *latent_shape, generator=generator),
        noise=torch.randn(count, *latent_shape, generator=generator),
        timesteps=(
            (max_timestep + 1) * torch.rand(count, generator=generator, dtype=torch.float64) ** timestep_exponent
        ).long(),
        dropped=torch.rand(count, generator=generator) < condition_dropout,
        variant=torch.rand(count, generator=generator),
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
