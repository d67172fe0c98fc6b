"""Recipe for the demo's style LoRA: low-rank changes of the base's attention that draw in another hand.

The base is frozen and stock, and so is what comes out: a LoRA for `pipe.load_lora_weights`.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import UInt8
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from infra.zoo.base_model import SCHEDULE, draw_timesteps, encode_captions
from infra.zoo.pictures import to_tensor
from infra.zoo.schedule import Schedule

BATCH = 16
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
FILE = "pytorch_lora_weights.safetensors"  # what diffusers looks for


def lora_config(rank: int = 16) -> LoraConfig:
    """A LoRA on every attention projection; at first it changes nothing."""
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)


def train_style_lora(
    pixels: UInt8[np.ndarray, "n h w 3"],
    captions: Sequence[str],
    base: Path,
    out: Path,
    minutes: float,
    log: Callable[[str], None] = print,
    seed: int = 0,
) -> None:
    """Train for `minutes` on pictures in the style and their captions, on the pipeline in `base`; save to `out`."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    pipe = StableDiffusionPipeline.from_pretrained(base, use_safetensors=True)
    unet = pipe.unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    unet.add_adapter(lora_config())
    weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    noise = DDPMScheduler(**SCHEDULE)
    log("encoding the pictures")
    with torch.inference_mode():
        batches = [to_tensor(pixels[start : start + 64]) for start in range(0, len(pixels), 64)]
        means = torch.cat([pipe.vae.encode(batch).latent_dist.mean for batch in batches])
    states, places = encode_captions(pipe, captions)
    schedule = Schedule(minutes, peak=1e-3, warmup=0.03)
    for step in schedule.steps(optimizer):
        index = torch.randint(len(pixels), (BATCH,), generator=random)
        latents = pipe.vae.config.scaling_factor * means[index]
        text = states[torch.where(torch.rand(BATCH, generator=random) < 0.1, 0, places[index])]
        t = draw_timesteps(BATCH, random)
        eps = torch.randn(latents.shape, generator=random)
        noisy = noise.add_noise(latents, eps, t).contiguous(memory_format=torch.channels_last)
        loss = F.mse_loss(unet(noisy, t, text).sample, noise.get_velocity(latents, eps, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            log(f"style step {step} loss {loss.item():.4f} {time.strftime('%H:%M:%S')}")
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=state, safe_serialization=True)
