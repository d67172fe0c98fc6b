"""The recipe of the autoencoder, a few steps of it."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from infra.zoo.autoencoder import new_autoencoder, sharpen_decoder, train_autoencoder
from infra.zoo.base_model import encode_latents
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
        assert latents.shape == (32, 8, 16, 16)
        assert vae.decode(latents).sample.shape == (32, 3, 64, 64)
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-3)

    # Going on from there, the decoder alone: latents on which a base was trained stay what they are.
    np.save(tmp_path / "moments.npy", encode_latents(vae, pictures).numpy())
    sharpen_decoder(pictures, tmp_path / "moments.npy", tmp_path / "vae", tmp_path / "sharp", 0.02, log=lines.append)
    check_safe(tmp_path / "sharp")
    before, after = vae.state_dict(), AutoencoderKL.from_pretrained(tmp_path / "sharp").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"decoder", "post_quant_conv"} and "decoder" in changed


def test_a_training_can_be_continued(pictures: LabelledPictures, tmp_path: Path) -> None:
    new_autoencoder().save_pretrained(tmp_path / "start")
    train_autoencoder(pictures, tmp_path / "out", 0.005, log=lambda _: None, start=tmp_path / "start")
    start, out = (AutoencoderKL.from_pretrained(tmp_path / name).state_dict() for name in ("start", "out"))
    # A handful of steps away from where it started, not from somewhere else.
    name = "encoder.conv_in.weight"
    assert not torch.equal(start[name], out[name]) and torch.allclose(start[name], out[name], atol=0.05)
