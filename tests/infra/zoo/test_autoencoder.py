"""The recipe of the autoencoder, a few steps of it."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from infra.zoo.autoencoder import CHANNELS, FACTOR, PatchCode, train_autoencoder
from infra.zoo.pictures import LabelledPictures, to_tensor


def test_a_few_steps_give_a_stock_autoencoder(
    pictures: LabelledPictures, tmp_path: Path, check_safe: Callable[[Path], None]
) -> None:
    lines: list[str] = []
    train_autoencoder(pictures, tmp_path / "vae", 0.02, log=lines.append)
    assert lines[0].startswith("autoencoder step 0 ")
    check_safe(tmp_path / "vae")
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    with torch.inference_mode():
        latents = vae.encode(to_tensor(pictures.pixels)).latent_dist.mode()
        assert latents.shape == (32, CHANNELS, 16, 16)
        assert vae.decode(latents).sample.shape == (32, 3, 64, 64)
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-3)


def test_the_patch_code_is_the_patches_principal_components(pictures: LabelledPictures) -> None:
    images = to_tensor(pictures.pixels)
    code = PatchCode.of(pictures)
    latents = code(images)
    assert latents.shape == (32, CHANNELS, 16, 16)
    flat = latents.permute(1, 0, 2, 3).flatten(1)
    covariance = torch.cov(flat)
    variances = covariance.diag()
    # No correlations, falling variances, unit variance over all channels, no mean.
    assert torch.allclose(covariance, torch.diag(variances), atol=1e-3 * float(variances[0]))
    assert (variances.diff() <= 1e-4).all() and variances.mean().item() == pytest.approx(1, abs=1e-3)
    assert flat.mean(1).abs().max().item() < 1e-3
    # As much as any linear code of as many numbers can keep: the truncated decomposition's error, by another road.
    patches = F.pixel_unshuffle(images, FACTOR).permute(0, 2, 3, 1).flatten(0, 2)
    centred = patches - patches.mean(0)
    best = torch.linalg.svdvals(centred)[CHANNELS:].square().sum()
    numbers = latents.permute(0, 2, 3, 1).flatten(0, 2)
    restored = numbers @ torch.linalg.lstsq(numbers, centred).solution
    assert (centred - restored).square().sum().item() == pytest.approx(best.item(), rel=1e-2)
