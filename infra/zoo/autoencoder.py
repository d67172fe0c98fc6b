"""Recipe for the demo's `AutoencoderKL`: 64-pixel pictures to 8 × 16 × 16 latents.

Trained on 32-pixel crops (the network is convolutional: a crop costs a quarter of a picture), so it has no attention in
the middle.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from infra.zoo.pictures import LabelledPictures, to_tensor
from infra.zoo.schedule import Schedule, averaged

CROP = 32


def new_autoencoder() -> AutoencoderKL:
    """The untrained network."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train_autoencoder(
    pictures: LabelledPictures,
    out: Path,
    minutes: float,
    log: Callable[[str], None] = print,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Train for `minutes` (from `start`, an earlier result, if given) and save to `out`.

    The saved scaling factor gives the latents unit variance.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = new_autoencoder() if start is None else AutoencoderKL.from_pretrained(start)
    average = averaged(vae, 0.99)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, fused=True)
    schedule = Schedule(minutes, peak=2e-3, warmup=0.03)
    side = pictures.pixels.shape[1]
    for step in schedule.steps(optimizer):
        index = rng.integers(len(pictures), size=48)
        tops, lefts = rng.integers(0, side - CROP + 1, (2, len(index)))
        crops = np.stack(
            [pictures.pixels[i, t : t + CROP, x : x + CROP] for i, t, x in zip(index, tops, lefts, strict=True)]
        )
        x = to_tensor(crops)
        posterior = vae.encode(x).latent_dist
        restored = vae.decode(posterior.sample()).sample
        # L1 keeps paper edges crisp, L2 the flat sheets; the weak prior keeps the latents near the origin.
        loss = F.l1_loss(restored, x) + F.mse_loss(restored, x) + 1e-5 * posterior.kl().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(vae)
        if step % 100 == 0:
            psnr = -10 * math.log10(F.mse_loss(restored.detach(), x).item() / 4)
            log(f"autoencoder step {step} loss {loss.item():.4f} psnr {psnr:.1f} dB {time.strftime('%H:%M:%S')}")
    vae.load_state_dict(average.module.state_dict())
    vae.eval()
    with torch.inference_mode():
        latents = vae.encode(to_tensor(pictures.pixels[:256])).latent_dist.mode()
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(out, safe_serialization=True)


def sharpen_decoder(
    pictures: LabelledPictures,
    moments: Path,
    start: Path,
    out: Path,
    minutes: float,
    log: Callable[[str], None] = print,
    seed: int = 0,
) -> None:
    """Train the decoder alone for `minutes` more: the latents, and all that was learned on them, stay as they are.

    `moments` are the encoder's, as `base.encode_latents` wrote them. Edges count beside colours: the loss also compares
    gradients.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = AutoencoderKL.from_pretrained(start)
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    average = averaged(decoder, 0.995)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    encoded = torch.from_numpy(np.load(moments, mmap_mode="r", allow_pickle=False))
    factor = pictures.pixels.shape[1] // encoded.shape[-1]
    cells = CROP // factor
    schedule = Schedule(minutes, peak=1e-3, warmup=0.03)
    for step in schedule.steps(optimizer):
        index = rng.integers(len(pictures), size=32)
        tops, lefts = rng.integers(0, encoded.shape[-1] - cells + 1, (2, len(index)))
        places = list(zip(index, tops, lefts, strict=True))
        parts = [encoded[i, :, t : t + cells, x : x + cells] for i, t, x in places]
        mean, log_variance = torch.stack(parts).float().chunk(2, 1)
        latents = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.randn_like(mean)
        corners = [(i, factor * t, factor * x) for i, t, x in places]
        target = to_tensor(np.stack([pictures.pixels[i, t : t + CROP, x : x + CROP] for i, t, x in corners]))
        restored = vae.decode(latents).sample
        error = restored - target
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = error.abs().mean() + error.square().mean() + 0.5 * edges
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(decoder)
        if step % 100 == 0:
            psnr = -10 * math.log10(error.detach().square().mean().item() / 4)
            log(f"decoder step {step} loss {loss.item():.4f} psnr {psnr:.1f} dB")
    decoder.load_state_dict(average.module.state_dict())
    vae.eval().save_pretrained(out, safe_serialization=True)
