"""The recipe of the base, a few steps of it."""

import copy
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.distributed as dist
from diffusers import StableDiffusionPipeline, UniPCMultistepScheduler
from torch.multiprocessing import start_processes
from transformers import CLIPProcessor

from infra.zoo.autoencoder import CHANNELS, new_autoencoder
from infra.zoo.base_model import detailed_captions, mean_over_ranks, new_unet, train_base
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
    assert np.load(tmp_path / "run" / "moments.npy", allow_pickle=False).shape == (32, 2 * CHANNELS, 16, 16)
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.tokenizer.model_max_length == MAX_TOKENS and pipe.safety_checker is None
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of a man in the snow", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def _rank_of_two(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 5, 3)
        whole, part = copy.deepcopy(layer), layer.to(memory_format=memory_format)
        images = torch.randn(2, 3, 8, 8)
        optimizers = [torch.optim.AdamW(module.parameters(), lr=0.1, fused=True) for module in (whole, part)]
        whole(images).square().mean().backward()
        part(images[rank : rank + 1]).square().mean().backward()
        assert mean_over_ranks(list(part.parameters()), torch.tensor([1.0 + rank])) == [1.5]
        for optimizer in optimizers:
            optimizer.step()
        for expected, found in zip(whole.parameters(), part.parameters(), strict=True):
            torch.testing.assert_close(found, expected)
    dist.destroy_process_group()


def test_two_ranks_take_the_step_that_one_would(tmp_path: Path) -> None:
    start_processes(_rank_of_two, args=(str(tmp_path / "place"),), nprocs=2, start_method="spawn")


def test_the_layout_is_stable_diffusions() -> None:
    unet = new_unet()
    blocks = [name for name, module in unet.named_modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert len(blocks) == 16 and len(unet.attn_processors) == 32
    assert unet.config.in_channels == unet.config.out_channels == CHANNELS


def test_detailed_captions_tell_the_looks_of_one_person_alone(pictures: LabelledPictures) -> None:
    tokenizer = clip_tokenizer([*pictures.captions, *(look for looks in pictures.looks for look in looks)])
    detailed = detailed_captions(pictures, tokenizer)
    assert len(detailed) == len(pictures)
    told = 0
    for caption, looks, text in zip(pictures.captions, pictures.looks, detailed, strict=True):
        assert len(tokenizer(text).input_ids) <= MAX_TOKENS
        if text == caption:
            continue
        told += 1
        assert len(looks) == 1 and looks[0].replace(",", "") in text
        assert text.endswith(caption.split(" ", 5)[-1])  # "a photo of a man holding roses …": what follows the person
    assert told > len(pictures) / 2
    # Two people stay as they were: words about one would be guesses about the other.
    assert all(
        text == caption
        for caption, looks, text in zip(pictures.captions, pictures.looks, detailed, strict=True)
        if len(looks) == 2
    )
    # So does a caption that the text encoder could not take whole.
    tokenizer.model_max_length = 14
    assert detailed_captions(pictures, tokenizer) == pictures.captions
