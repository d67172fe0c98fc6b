"""Shapes from configurations alone, against the models themselves."""

import json
import shutil
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPModel

from infra.errors import UserError
from infra.model_files import ZOO
from moa_model.architectures import PUBLISHED_BASES, PUBLISHED_IMAGE_DIMS, read_base, read_image_dim


def test_the_shape_is_that_of_the_folders_models() -> None:
    base, vae = read_base(ZOO / "base"), AutoencoderKL.from_pretrained(ZOO / "base", subfolder="vae")
    with torch.no_grad():
        moments = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.parameters
    side = 64 // base.pixels_per_latent
    assert moments.shape == (1, 2 * base.latent_channels, side, side)
    assert base.tokens == AutoTokenizer.from_pretrained(ZOO / "base", subfolder="tokenizer").model_max_length
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(base.unet))
    assert unet.config.cross_attention_dim == base.text_dim
    assert read_image_dim(ZOO / "clip") == CLIPModel.from_pretrained(ZOO / "clip").config.projection_dim


def test_stable_diffusion_15_is_known_by_its_hub_id() -> None:
    base = PUBLISHED_BASES["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(base.unet))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert (base.latent_channels, base.pixels_per_latent, base.tokens, base.text_dim) == (4, 8, 77, 768)
    assert PUBLISHED_IMAGE_DIMS["openai/clip-vit-large-patch14"] == 768


@pytest.mark.parametrize("damage", ["absent", "no JSON", "a list", "a field less"])
def test_a_damaged_configuration_is_one_sentence(damage: str, tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        shutil.copy(ZOO / "base" / part / "config.json", tmp_path / part)
    file = tmp_path / "vae" / "config.json"
    if damage == "absent":
        file.unlink()
    elif damage == "a field less":
        config = json.loads(file.read_text())
        del config["latent_channels"]
        file.write_text(json.dumps(config))
    else:
        file.write_text("{" if damage == "no JSON" else "[1]")
    with pytest.raises(UserError, match="copy the whole model folder there"):
        read_base(tmp_path)
    with pytest.raises(UserError, match="config.json"):
        read_image_dim(tmp_path)
