"""Another person in a real photo (§5.3): DDIM inversion (arXiv 2010.02502) by the prior, then MoA from that noise.

Axes: B = 1 picture, C latent channels, H W latent pixels.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from moa_model.adapter import MoAAdapter
from moa_model.binding import SubjectsByWord
from moa_model.scene import Scene, keeping
from moa_model.stock_pipelines import added_conditions, encoded, rebuilt

# A photo's own noise schedule, whatever the pipeline samples with: both directions must meet the same timesteps.
_SCHEDULE = {"timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": False}


@dataclass(frozen=True)
class Inverted:
    """A photo as noise: `regenerate` turns it back into the photo, or into the photo with somebody else."""

    prompt: str
    noise: Float[Tensor, "B C H W"]
    size: tuple[int, int]
    """Height and width of the photo."""
    steps: int
    latents: tuple[Float[Tensor, "B C H W"], ...] = ()
    """What `regenerate` has after each step where it repeats the photo: from nearly noise to the photo itself."""


@torch.no_grad()
def invert(pipe: Any, photo: Image.Image, prompt: str, steps: int = 30, refinements: int = 1) -> Inverted:
    """The noise from which the prior draws `photo` for `prompt` ("a photo of a person", also for two), in `steps`.

    A DDIM step backwards needs the noise prediction at the point where it arrives. The first guess is the prediction
    at the point where it starts; each of `refinements` repeats the step with the prediction at the last guess.
    """
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config, **_SCHEDULE, prediction_type="epsilon")
    scheduler.set_timesteps(steps)
    pixels = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)[None].to(pipe.device, pipe.vae.dtype)
    latent = pipe.vae.encode(pixels / 127.5 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    call = encoded(pipe, prompt, guided=False)
    added = added_conditions(pipe, call, (photo.height, photo.width))
    text = {"encoder_hidden_states": call["prompt_embeds"], "added_cond_kwargs": added}
    passed = []
    for timestep in scheduler.timesteps:
        passed.append(latent)
        arrived = latent
        for _ in range(1 + refinements):
            noise = _noise(pipe, scheduler, arrived, timestep, text)
            arrived = scheduler.step(noise, timestep, latent).prev_sample
        latent = arrived
    return Inverted(prompt, latent, (photo.height, photo.width), steps, tuple(reversed(passed)))


def renoised(inverted: Inverted, mask_HW: Bool[Tensor, "height width"], share: float = 0.8, seed: int = 0) -> Inverted:
    """The same noise but for the pixels of somebody who is to be replaced, of which a `share` is drawn anew.

    Ours, not the paper's: inverted noise remembers the photo so well that a small model draws the old person again.
    `mask_HW` covers the person in the photo; share 0 is the paper's plain inversion.
    """
    fresh = torch.randn(inverted.noise.shape, generator=torch.Generator().manual_seed(seed)).to(inverted.noise)
    blend = math.sqrt(1 - share) * inverted.noise + math.sqrt(share) * fresh
    return replace(inverted, noise=torch.lerp(inverted.noise, blend, _touched(mask_HW, inverted)))


def regenerate(
    pipe: Any,
    adapter: MoAAdapter,
    inverted: Inverted,
    subjects: SubjectsByWord,
    guidance_scale: float = 1.0,
    replaced_HW: Bool[Tensor, "height width"] | None = None,
) -> Image.Image:
    """The photo again, with `subjects` at the words of its prompt; with none, the photo as the prior reconstructs it.

    Whoever is to stay is bound too, to a crop of themselves. Guidance leads towards the subjects and away from the
    photo: 1 is none. With the mask of who is replaced (`replaced_HW`), everything outside it that the routers do not
    give to the subjects stays the photo's own (`scene.Scene`); without, as in the paper, it is drawn again.
    """
    ddim = DDIMScheduler.from_config(pipe.scheduler.config, **_SCHEDULE)
    sampler = rebuilt(pipe, type(pipe), scheduler=ddim)
    height, width = inverted.size
    scene = people_BHW = None
    if replaced_HW is not None:
        ddim.set_timesteps(inverted.steps)
        scene, people_BHW = Scene(inverted.latents, ddim.timesteps.tolist()), _touched(replaced_HW, inverted)[0]
    with keeping(scene, adapter, people_BHW=people_BHW) as keep:
        return sampler(
            inverted.prompt,
            latents=inverted.noise,
            num_inference_steps=inverted.steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            cross_attention_kwargs=adapter.bind(sampler, inverted.prompt, subjects),
            **keep,
        ).images[0]


def _touched(mask_HW: Bool[Tensor, "height width"], inverted: Inverted) -> Float[Tensor, "1 1 H W"]:
    """The latent pixels that a mask of the photo touches."""
    return functional.adaptive_max_pool2d(mask_HW[None, None].to(inverted.noise), inverted.noise.shape[-2:])


def _noise(pipe: Any, scheduler: Any, latent: Tensor, timestep: Tensor, text: dict[str, Any]) -> Tensor:
    """The prior's noise prediction: its own, or made from v (arXiv 2202.00512, app. D): ε = √ᾱ v + √(1−ᾱ) z."""
    predicted = pipe.unet(latent, timestep, **text).sample
    if pipe.scheduler.config.prediction_type == "epsilon":
        return predicted
    alpha = scheduler.alphas_cumprod[timestep].to(predicted)
    return alpha.sqrt() * predicted + (1 - alpha).sqrt() * latent
