"""Recipe for the demo's `AutoencoderKL`: 64-pixel pictures to 12 × 16 × 16 latents that a diffusion model learns fast.

Left to itself an encoder of this size spreads every picture evenly over channels and frequencies: only half of its
latents' energy survives a 2 × 2 mean, of a picture's own pixels seven tenths. A base trained on such latents draws
soft people (arXiv 2502.14831 finds the same at full size). So the encoder is pulled to a linear code of 4 × 4 patches,
their principal components: first colours and shapes, then edges.

Trained on 32-pixel crops (the network is convolutional: a crop costs a quarter of a picture), so it has no attention in
the middle.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from infra.zoo.pictures import LabelledPictures, to_tensor
from infra.zoo.schedule import Schedule, averaged

CROP = 32
FACTOR = 4  # pixels of a latent's side
CHANNELS = 12  # principal components of a patch; they alone restore Paperfolk at 26 dB
WHITENING = 0.25  # component k of variance v gets variance v^0.75: at 0.5 the spectrum is as flat as the free code's
NOISE = 0.1  # on the latents of unit variance that the decoder learns from: a sampler leaves about as much


@dataclass(frozen=True)
class PatchCode:
    """A linear code of square patches; unit variance over all channels of the pictures that it was made from."""

    weight: Float[Tensor, "c 3 f f"]
    bias: Float[Tensor, " c"]

    @classmethod
    def of(cls, pictures: LabelledPictures, limit: int = 3000) -> "PatchCode":
        """The first CHANNELS principal components of the patches of at most `limit` pictures."""
        pixels = F.pixel_unshuffle(to_tensor(pictures.pixels[:limit]), FACTOR)
        patches = pixels.permute(0, 2, 3, 1).flatten(0, 2)
        mean = patches.mean(0)
        variances, components = torch.linalg.eigh(torch.cov((patches - mean).T))  # smallest first
        variances, components = variances.flip(0)[:CHANNELS], components.flip(1)[:, :CHANNELS]
        # An eigenvector's sign is arbitrary: its largest entry is made positive.
        components = components * components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        scales = variances.clamp(min=1e-6) ** (-WHITENING / 2)
        scales = scales / (variances * scales**2).mean().sqrt()
        rows = (components * scales).T
        return cls(rows.reshape(CHANNELS, 3, FACTOR, FACTOR), -(rows @ mean))

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h/f w/f"]:
        """The code of images in [-1, 1]."""
        return F.conv2d(images, self.weight, self.bias, stride=FACTOR)


def new_autoencoder() -> AutoencoderKL:
    """The untrained network."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train_autoencoder(
    pictures: LabelledPictures, out: Path, minutes: float, log: Callable[[str], None] = print, seed: int = 0
) -> None:
    """Train for `minutes` and save to `out`. The saved scaling factor gives the latents unit variance."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    code = PatchCode.of(pictures)
    vae = new_autoencoder().to(memory_format=torch.channels_last)
    average = averaged(vae, 0.99)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=1e-4, fused=True)
    schedule = Schedule(minutes, peak=3e-3, warmup=0.03)
    places = (pictures.pixels.shape[1] - CROP) // FACTOR + 1  # crops begin where a latent does
    for step in schedule.steps(optimizer):
        index = rng.integers(len(pictures), size=32)
        tops, lefts = FACTOR * rng.integers(0, places, (2, len(index)))
        crops = np.stack(
            [pictures.pixels[i, t : t + CROP, x : x + CROP] for i, t, x in zip(index, tops, lefts, strict=True)]
        )
        x = to_tensor(crops).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        restored = vae.decode(posterior.mean + NOISE * torch.randn_like(posterior.mean)).sample
        error = restored - x
        # L1 keeps paper edges crisp, L2 the flat sheets, and the gradients' L1 what thin lines there are.
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        pull = F.mse_loss(posterior.mean, code(x))
        # In place of a KL term, which the pull makes idle: the posterior's deviation is the decoder's noise.
        spread = (posterior.logvar - 2 * math.log(NOISE)).square().mean()
        loss = error.abs().mean() + error.square().mean() + 0.5 * edges + pull + 1e-3 * spread
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(vae)
        if step % 100 == 0:
            psnr = -10 * math.log10(error.detach().square().mean().item() / 4)
            log(f"autoencoder step {step} loss {loss.item():.4f} psnr {psnr:.1f} dB {time.strftime('%H:%M:%S')}")
    vae.load_state_dict(average.module.state_dict())
    vae.eval()
    with torch.inference_mode():
        latents = vae.encode(to_tensor(pictures.pixels[:256])).latent_dist.mode()
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(out, safe_serialization=True)
