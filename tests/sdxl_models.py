"""Stand-ins for the models that the preset sdxl names: same classes, files and interfaces, small and random.

As the published folder has them: two tokenizers of one vocabulary that pad differently, two text encoders of different
widths in single precision whose configurations say half, an 8-fold VAE, epsilon prediction, Euler, and zeros for an
empty prompt. The other four are those of sd15.
"""

import json
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.sd15_models import TOKENS, write_tokenizer, written_models
from tests.tiny_models import tiny_text_config, tiny_tokenizer
from tests.tiny_pipelines import tiny_sdxl_unet

FIRST, SECOND = 12, 20  # widths of the two encoders
POOLED_DIM = 14


def write_sdxl_models(root: Path) -> dict[str, str]:
    """All five under `root`; the overrides that make the preset read them."""
    return written_models(root, write_sdxl_base(root / "stable-diffusion-xl-base-1.0"))


def write_sdxl_base(folder: Path) -> Path:
    """SDXL's layout in small."""
    torch.manual_seed(0)
    second = CLIPTextConfig(**(tiny_text_config(SECOND, TOKENS).to_dict() | {"projection_dim": POOLED_DIM}))
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=1024,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(tiny_text_config(FIRST, TOKENS)),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=tiny_sdxl_unet(text_dim=FIRST + SECOND, pooled_dim=POOLED_DIM),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad="!")
    for name in ("text_encoder", "text_encoder_2"):
        config = folder / name / "config.json"
        about = {key: value for key, value in json.loads(config.read_text()).items() if key != "dtype"}
        config.write_text(json.dumps(about | {"torch_dtype": "float16"}))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    return folder
