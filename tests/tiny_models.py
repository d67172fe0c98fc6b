"""Real models of the production classes with random weights, small enough to be made in a test."""

from collections.abc import Sequence
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)
from transformers.models.clip.configuration_clip import CLIPVisionConfig

TEXT_DIM = 16
IMAGE_DIM = 12
TOKENS = 32


def tiny_tokenizer() -> CLIPTokenizer:
    """A fast CLIP BPE tokenizer of every ASCII letter and a few merges: "man" is one token, "woman" two."""
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


def tiny_text_config(width: int, tokens: int = TOKENS) -> CLIPTextConfig:
    """A CLIP text tower of two layers for the tiny tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def tiny_pipeline(
    seed: int = 0, prediction_type: str = "v_prediction", folder: Path | None = None
) -> StableDiffusionPipeline:
    """A random pipeline of 32 × 32 pictures and 8 × 8 latents; saved as safetensors if a folder is given."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = tiny_text_config(TEXT_DIM)
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
        scheduler=UniPCMultistepScheduler(
            prediction_type=prediction_type, beta_schedule="scaled_linear", steps_offset=1
        ),
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


def tiny_blip2(folder: Path, seed: int = 0) -> Path:
    """A random BLIP-2 of 32 × 32 pictures with its processor, saved.

    It never stops by itself and says little but "man", so that its captions name somebody.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(seed)
    words = ["<pad>", "<s>", "</s>", "<image>", "a", "man", "woman", "smiling"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    config = Blip2Config(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.2,  # the default is 1e-10: every picture would look the same
        },
        qformer_config={
            "vocab_size": len(words),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "cross_attention_frequency": 1,
            "encoder_hidden_size": 16,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(words),
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        num_query_tokens=2,
        image_token_index=3,
        initializer_range=0.2,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.language_model.model.decoder.final_layer_norm.weight[0] = 0.0
        model.language_model.model.decoder.final_layer_norm.bias[0] = 2.0
        leanings = torch.tensor([-9.0, -9.0, -9.0, -9.0, 0.0, 0.4, 0.1, 0.0])
        model.language_model.get_input_embeddings().weight[:, 0] = leanings
    model.save_pretrained(folder, safe_serialization=True)
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(pictures, tokenizer, num_query_tokens=2).save_pretrained(folder)
    return folder


def tiny_mask2former(folder: Path, seed: int = 0, labels: Sequence[str] = ("person",)) -> Path:
    """A random Mask2Former of 32 × 32 pictures, by default with the one class "person", saved with its processor."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(seed)
    backbone = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=4,
        feature_strides=[2, 4, 8, 16],
        common_stride=2,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    Mask2FormerForUniversalSegmentation(config).eval().save_pretrained(folder, safe_serialization=True)
    Mask2FormerImageProcessor(size={"height": 32, "width": 32}, size_divisor=0, do_resize=True).save_pretrained(folder)
    return folder
