"""Real models of the production classes with random weights, small enough to be made in a test."""

from pathlib import Path

import infra.torchvision_ops  # noqa: F401  # isort: skip
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.configuration_clip import CLIPVisionConfig

TEXT_DIM = 16
IMAGE_DIM = 12
TOKENS = 32


def tiny_tokenizer() -> CLIPTokenizer:
    """A fast CLIP BPE tokenizer of every ASCII letter and a few merges: "man" is one token, "woman" two, "beach" four."""
    characters = [chr(code) for code in range(33, 127)]
    merges = [("m", "a"), ("ma", "n</w>"), ("w", "o"), ("o", "f</w>"), ("b", "e"), ("be", "a"), ("r", "o"), ("p", "h")]
    words = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    words += ["".join(merge) for merge in merges]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tiny_unet(widths: tuple[int, int, int, int] = (8, 16, 16, 16), text_dim: int = TEXT_DIM) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's block layout: 16 transformer blocks, 32 attention layers."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        attention_head_dim=2,  # the number of heads, as in SD 1.5's configuration
        cross_attention_dim=text_dim,
        norm_num_groups=4,
    ).eval()


def tiny_pipeline(seed: int = 0, prediction_type: str = "v_prediction", folder: Path | None = None) -> StableDiffusionPipeline:
    """A random pipeline of 32 × 32 pictures and 8 × 8 latents; saved as safetensors if a folder is given."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=tiny_unet(),
        scheduler=UniPCMultistepScheduler(prediction_type=prediction_type, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    if folder is not None:
        pipe.save_pretrained(folder, safe_serialization=True)
    return pipe


def tiny_clip(seed: int = 0, folder: Path | None = None) -> tuple[CLIPModel, CLIPProcessor]:
    """A random CLIP of 32 × 32 pictures and its processor; saved as safetensors if a folder is given."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=IMAGE_DIM)
    model = CLIPModel(config).eval()
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)
    if folder is not None:
        model.save_pretrained(folder, safe_serialization=True)
        processor.save_pretrained(folder)
    return model, processor
