"""Recipe for the demo's ControlNet (arXiv 2302.05543): the base's encoder half, led by a picture of poses.

The base is frozen and stock, and so is what comes out: a `ControlNetModel` for `StableDiffusionControlNetPipeline`.
"""

import time
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import UInt8

from infra.zoo.base_model import SCHEDULE, encode_captions, encode_latents
from infra.zoo.pictures import LabelledPictures
from infra.zoo.schedule import Schedule, averaged

BATCH = 16
NO_PROMPT = 0.3  # of the pictures are shown without their caption: what the words do not say the pose must
LAYOUT = 0.55  # below 1, the noisy timesteps come more often: there is decided where somebody stands


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """The untrained network: the encoder's copy, and three convolutions from 64 pixels to 16."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))


def train_pose_controlnet(
    pictures: LabelledPictures,
    poses: UInt8[np.ndarray, "n h w 3"],
    base: Path,
    out: Path,
    minutes: float,
    log: Callable[[str], None] = print,
    seed: int = 0,
) -> None:
    """Train for `minutes` on pictures and their poses, on the pipeline in `base`, and save the model to `out`."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    pipe = StableDiffusionPipeline.from_pretrained(base, use_safetensors=True)
    unet = pipe.unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    model = new_controlnet(unet).train().to(memory_format=torch.channels_last)
    average = averaged(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    noise = DDPMScheduler(**SCHEDULE)
    log("encoding the pictures")
    means = encode_latents(pipe.vae, pictures).chunk(2, 1)[0]
    states, places = encode_captions(pipe, pictures.captions)
    schedule = Schedule(minutes, peak=1e-3, warmup=0.03)
    for step in schedule.steps(optimizer):
        index = torch.randint(len(pictures), (BATCH,), generator=random)
        latents = pipe.vae.config.scaling_factor * means[index].float()
        pose = torch.from_numpy(poses[index.numpy()]).permute(0, 3, 1, 2).float() / 255
        text = states[torch.where(torch.rand(BATCH, generator=random) < NO_PROMPT, 0, places[index])]
        t = (1000 * torch.rand(BATCH, generator=random) ** LAYOUT).long()
        eps = torch.randn(latents.shape, generator=random)
        noisy = noise.add_noise(latents, eps, t).contiguous(memory_format=torch.channels_last)
        down, middle = model(noisy, t, text, controlnet_cond=pose, return_dict=False)
        predicted = unet(noisy, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle)
        loss = F.mse_loss(predicted.sample, noise.get_velocity(latents, eps, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if step % 50 == 0:
            log(f"controlnet step {step} loss {loss.item():.4f} {time.strftime('%H:%M:%S')}")
    average.module.save_pretrained(out, safe_serialization=True)
