"""Stand-ins for the models that the preset sd15 names: same classes, files and interfaces, small and random.

What the published folders have and `save_pretrained` no longer writes is written as published: a tokenizer as
vocab.json and merges.txt, a preprocessor_config.json, a safety checker in the pipeline's index.
"""

import json
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import AutoencoderKL, PNDMScheduler
from facenet_pytorch import InceptionResnetV1
from safetensors.torch import save_file
from torchvision.models import alexnet
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
)

from tests.tiny_models import TEXT_DIM, tiny_blip2, tiny_mask2former, tiny_pipeline, tiny_text_config, tiny_tokenizer

TOKENS = 77  # Stable Diffusion 1.5's prompt length
IMAGE_DIM = 24


def write_sd15_models(root: Path) -> dict[str, str]:
    """All six under `root`; the overrides that make the preset read them. (FaceNet and AlexNet are local there too.)"""
    return written_models(root, write_base(root / "stable-diffusion-v1-5"))


def written_models(root: Path, base: Path) -> dict[str, str]:
    """The other five under `root`, beside a base that is there, and the overrides that name all six."""
    places = {
        "base": base,
        "clip": write_clip(root / "clip-vit-large-patch14"),
        "captioner": tiny_blip2(root / "blip2-opt-2.7b"),
        "segmenter": write_segmenter(root / "mask2former-swin-large-coco-panoptic"),
        "identity": write_facenet(root / "facenet-vggface2"),
        "perceptual": write_alexnet(root / "lpips-alexnet"),
    }
    locations = {f"models.{name}.location": str(place) for name, place in places.items()}
    return locations | {f"models.{name}.revision": "" for name in places if name not in ("identity", "perceptual")}


def write_base(folder: Path) -> Path:
    """SD 1.5's block layout, 8-fold VAE, 77 tokens, epsilon prediction, PNDM."""
    pipe = tiny_pipeline(prediction_type="epsilon")
    pipe.vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=512,
    )
    pipe.text_encoder = CLIPTextModel(tiny_text_config(TEXT_DIM, TOKENS))
    pipe.scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder / "tokenizer")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["requires_safety_checker"] = True
    (folder / "model_index.json").write_text(json.dumps(index))
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    return folder


def write_clip(folder: Path) -> Path:
    """Two towers, pictures of 224 pixels."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=32
    )
    config = CLIPConfig(
        text_config=tiny_text_config(16, TOKENS).to_dict(), vision_config=vision.to_dict(), projection_dim=IMAGE_DIM
    )
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    CLIPImageProcessor().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_segmenter(folder: Path) -> Path:
    """COCO's 133 panoptic classes, and a head that believes in people."""
    tiny_mask2former(folder, labels=("person", *(f"thing {number}" for number in range(1, 133))))
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    with torch.no_grad():
        model.class_predictor.bias[0] = 12.0
    model.save_pretrained(folder, safe_serialization=True)
    size = {"shortest_edge": 64, "longest_edge": 107}
    Mask2FormerImageProcessor(size=size, size_divisor=32).save_pretrained(folder)
    return folder


def write_facenet(folder: Path) -> Path:
    """InceptionResnetV1 as the README's command converts it, with the head that the embedding does not need."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    state = InceptionResnetV1(pretrained=None, classify=False).state_dict()
    weights = {name: tensor.half().contiguous() for name, tensor in state.items() if "logits" not in name}
    weights |= {"logits.weight": torch.zeros(4, 512), "logits.bias": torch.zeros(4)}
    save_file(weights, folder / "vggface2.safetensors")
    return folder


def write_alexnet(folder: Path) -> Path:
    """LPIPS' trunk as the README's command converts it."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    save_file(alexnet(weights=None).features.state_dict(prefix="features."), folder / "alexnet.safetensors")
    return folder


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    """The published form: vocab.json, merges.txt and two small configurations."""
    folder.mkdir(exist_ok=True)
    tokenizer: CLIPTokenizer = tiny_tokenizer()
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    about = {**special, "model_max_length": TOKENS, "tokenizer_class": "CLIPTokenizer", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
