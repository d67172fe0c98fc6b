"""One arm's training: a plain loop that can be killed at any time and goes on where it was.

Step k of every arm with the same training seed sees the same samples, noise and timesteps (but for an arm's own largest
timestep): `draw` and `SampleOrder` are pure functions of seed and place. The prior's prediction, which the preservation
loss compares with, is the same for all of them too and is computed once.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flows.training_samples import batch_of as batch_of_samples
from moa_model import EMA, Batch, SampleOrder, draw, rate_scale
from tests.benchmarks.claims.arms import MoAArm
from tests.benchmarks.claims.ip_adapter import IPAdapterArm
from tests.benchmarks.claims.plan import DROPOUT, EMA_DECAY, LEARNING_RATE, LENGTHS, ROWS, SHIPPED, WARM_UP, Arm
from tests.benchmarks.claims.world import Base, World

_SAVE_EVERY = 100  # under a minute: the most that a kill costs
_STATE = "state.safetensors"
Tell = Callable[[int, float], None]


def trained_folder(folder: Path, arm: Arm, seed: int) -> Path:
    """Where an arm's training lies; its name changes with the arm's settings."""
    return folder / "training" / f"{arm.name}-{arm.training_key()}" / f"seed-{seed}"


def kept_folder(folder: Path, arm: Arm, seed: int, step: int) -> Path:
    """Where the averaged weights of one length lie; the shipped ones have their own place."""
    if arm.kind == "shipped":
        return SHIPPED
    return trained_folder(folder, arm, seed) / f"step-{step:06d}"


def train(world: World, folder: Path, arm: Arm, seed: int, steps: int, tell: Tell) -> None:
    """Train up to `steps` steps and keep the average at every length of the plan on the way."""
    if kept_folder(folder, arm, seed, steps).is_dir():
        return
    base = world.base()
    torch.manual_seed(seed)
    module: Any
    if arm.kind == "ip-adapter":
        module = IPAdapterArm(base.unet, base.scheduler, world.image_dim)
    else:
        module = MoAArm(arm, base.unet, base.scheduler, world.image_dim)
    optimizer = torch.optim.AdamW(module.groups(LEARNING_RATE), weight_decay=0.01)
    rates = [group["lr"] for group in optimizer.param_groups]
    ema = EMA(module.trained, EMA_DECAY)
    own = trained_folder(folder, arm, seed)
    own.mkdir(parents=True, exist_ok=True)
    first = _load(own / _STATE, module.trained, ema, optimizer)
    prior = PriorPredictions(folder, arm, seed, world.latent_shape) if arm.lambda_preservation else None
    for step in range(first, steps):
        done, batch = step + 1, batch_of(world, base, arm, seed, step)
        prior_BCHW = None if prior is None else prior.of(step, batch, module)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_scale(step, steps, WARM_UP)
        optimizer.zero_grad(set_to_none=True)
        losses = module(batch, coins(seed, step), prior_BCHW)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(module.trained.parameters(), 1.0)
        optimizer.step()
        ema.update()
        if done in LENGTHS or done == steps:
            _keep(kept_folder(folder, arm, seed, done), module, ema)
        if done % _SAVE_EVERY == 0 or done == steps:
            _save(own / _STATE, module.trained, ema, optimizer, done)
        if done % 10 == 0 or done == steps:
            tell(done, float(losses.masked.detach()))


def batch_of(world: World, base: Base, arm: Arm, seed: int, step: int) -> Batch:
    """The samples and random numbers of one step."""
    positions = range(step * ROWS, (step + 1) * ROWS)
    order = SampleOrder(seed, [len(world.samples)], 1)
    chosen = [world.samples[order.at(position)[1]] for position in positions]
    numbers = draw(seed, positions, world.latent_shape, arm.max_timestep, DROPOUT, arm.timestep_exponent)
    return batch_of_samples(chosen, numbers, base.null_text, base.scaling, base.shift)


def coins(seed: int, step: int) -> Float[Tensor, " B"]:
    """0 … 1 per sample of a step: whether its loss is masked, where that is a matter of chance."""
    return torch.from_numpy(np.random.default_rng([seed, step, 1]).random(ROWS)).float()


class PriorPredictions:
    """The prior's own prediction for every step of a training seed, kept in half precision in one file.

    A step that is not there yet is NaN; two processes that fill the same one write the same numbers.
    """

    def __init__(self, folder: Path, arm: Arm, seed: int, latent_shape: tuple[int, int, int]) -> None:
        name = f"seed{seed}-rows{ROWS}-timesteps{arm.max_timestep}-exponent{arm.timestep_exponent:g}.npy"
        path = folder / "prior-predictions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            part = path.with_name(f".{name}.{os.getpid()}.npy")
            np.save(part, np.full((LENGTHS[-1], ROWS, *latent_shape), np.nan, np.float16))
            os.replace(part, path)
        self._kept = np.lib.format.open_memmap(path, mode="r+")

    def of(self, step: int, batch: Batch, module: Any) -> Float[Tensor, "B C H W"]:
        """The prediction for the step's batch."""
        if step >= len(self._kept):
            return self._predict(batch, module)
        kept = np.array(self._kept[step], np.float32)
        if np.isnan(kept).any():
            predicted = self._predict(batch, module)
            self._kept[step] = predicted.numpy()
            return predicted.half().float()
        return torch.from_numpy(kept)

    @staticmethod
    @torch.no_grad()
    def _predict(batch: Batch, module: Any) -> Float[Tensor, "B C H W"]:
        text_BTD = torch.where(batch.dropped[:, None, None], batch.null_text, batch.text)
        noisy_BCHW = module.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        return module.unet(noisy_BCHW, batch.timesteps, text_BTD, return_dict=False)[0]


def _keep(folder: Path, module: Any, ema: EMA) -> None:
    if folder.is_dir():
        return
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    with ema.applied():
        module.keep(part)
    os.replace(part, folder)


def _save(path: Path, trained: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, average and optimizer in one file, whole or not at all."""
    tensors = {f"weight|{name}": value for name, value in trained.named_parameters()}
    tensors |= {f"average|{name}": value for name, value in ema.state_dict().items()}
    for name, parameter in trained.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer|{name}|{key}"] = torch.as_tensor(value)
    tensors["step"] = torch.tensor(step)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, part)
    os.replace(part, path)


def _load(path: Path, trained: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved state back; gives the number of finished steps."""
    if not path.exists():
        return 0
    tensors = load_file(path)
    prefix = "average|"
    ema.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(tensors[f"weight|{name}"])
            start = f"optimizer|{name}|"
            if state := {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}:
                optimizer.state[parameter] = state
    return int(tensors["step"])
