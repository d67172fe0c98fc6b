"""The recipe of the base, a few steps of it."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
from diffusers import StableDiffusionPipeline, UniPCMultistepScheduler
from transformers import CLIPProcessor

from infra.zoo.autoencoder import new_autoencoder
from infra.zoo.base_model import new_unet, train_base
from infra.zoo.clip import image_processor, new_clip
from infra.zoo.pictures import LabelledPictures
from infra.zoo.tokenizers import MAX_TOKENS, clip_tokenizer


def test_a_few_steps_give_a_stock_pipeline(
    pictures: LabelledPictures, tmp_path: Path, check_safe: Callable[[Path], None]
) -> None:
    tokenizer = clip_tokenizer(pictures.captions)
    new_clip(tokenizer).save_pretrained(tmp_path / "clip")
    CLIPProcessor(image_processor(), tokenizer).save_pretrained(tmp_path / "clip")
    new_autoencoder().save_pretrained(tmp_path / "vae")
    pictures.save(tmp_path / "pictures.npz")
    places = [tmp_path / name for name in ("pictures.npz", "vae", "clip", "run")]
    folder = train_base(*places, minutes=0.01, processes=1, log=lambda _: None)
    check_safe(folder)
    assert np.load(tmp_path / "run" / "moments.npy", allow_pickle=False).shape == (32, 16, 16, 16)
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.tokenizer.model_max_length == MAX_TOKENS and pipe.safety_checker is None
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of a man in the snow", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def test_the_layout_is_stable_diffusions() -> None:
    unet = new_unet()
    blocks = [name for name, module in unet.named_modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert len(blocks) == 16 and len(unet.attn_processors) == 32
    assert unet.config.in_channels == unet.config.out_channels == 8
