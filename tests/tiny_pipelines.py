"""Tiny random pipelines of every kind that MoA is attached to: three bases, six stock pipelines each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_models import TEXT_DIM, TOKENS, tiny_pipeline, tiny_text_config, tiny_tokenizer

BASES = ("sd1", "sd2", "sdxl")
KINDS = ("text", "image", "inpaint", "inpaint checkpoint", "control", "two controls")
SIDE = 32
_PLAIN = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_CLASSES: dict[str, dict[str, Any]] = {
    "image": {"sd": StableDiffusionImg2ImgPipeline, "sdxl": StableDiffusionXLImg2ImgPipeline},
    "inpaint": {"sd": StableDiffusionInpaintPipeline, "sdxl": StableDiffusionXLInpaintPipeline},
    "control": {"sd": StableDiffusionControlNetPipeline, "sdxl": StableDiffusionXLControlNetPipeline},
}


@dataclass
class Case:
    """A pipeline and how it is called."""

    pipe: Any
    call: dict[str, Any]

    def draw(self, prompt: str | list[str] | None, bound: dict[str, Any] | None = None, **settings: Any) -> Tensor:
        """The latents of a short run of fixed seed; ``bound`` is what ``adapter.bind`` gave."""
        return self.pipe(**self.arguments(prompt, cross_attention_kwargs=bound, **settings)).images

    def arguments(self, prompt: str | list[str] | None, **settings: Any) -> dict[str, Any]:
        """What ``draw`` calls the pipeline with."""
        defaults = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
        return defaults | self.call | {"prompt": prompt, "generator": torch.Generator().manual_seed(3)} | settings


def tiny_case(base: str, kind: str = "text") -> Case:
    """One of ``BASES`` as one of ``KINDS``. Half of the steps are low enough for the experts."""
    pipe = _TEXT[base](9 if kind == "inpaint checkpoint" else 4)
    photo, other = (Image.effect_noise((SIDE, SIDE), 90).convert("RGB") for _ in range(2))
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 8, 28, 24))
    size = {"height": SIDE, "width": SIDE}
    calls: dict[str, dict[str, Any]] = {
        "text": {},
        "image": {"image": photo, "strength": 0.5, "num_inference_steps": 4},
        "inpaint": {"image": photo, "mask_image": mask, "strength": 1.0} | size,
        "inpaint checkpoint": {"image": photo, "mask_image": mask, "strength": 1.0} | size,
        "control": {"image": photo} | size,
        "two controls": {"image": [photo, other], "controlnet_conditioning_scale": [1.0, 0.5]} | size,
    }
    if kind != "text":
        pipe = _as(pipe, kind, base)
    return Case(pipe, calls[kind])


def tiny_sd2_unet(in_channels: int = 4) -> UNet2DConditionModel:
    """Stable Diffusion 2.1's differences: a list of head counts, linear projections, upcast attention."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        attention_head_dim=[1, 2, 4, 4],
        cross_attention_dim=TEXT_DIM,
        use_linear_projection=True,
        upcast_attention=True,
        norm_num_groups=4,
    ).eval()


def tiny_sdxl_unet(
    in_channels: int = 4, text_dim: int = 2 * TEXT_DIM, pooled_dim: int = TEXT_DIM
) -> UNet2DConditionModel:
    """SDXL's layout: three levels, several transformer blocks in a row, added conditions; 11 transformer blocks."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=text_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled_dim,
        norm_num_groups=4,
    ).eval()


def _sd1(in_channels: int) -> StableDiffusionPipeline:
    pipe = tiny_pipeline(prediction_type="epsilon")
    if in_channels != 4:
        config = dict(pipe.unet.config) | {"in_channels": in_channels}
        pipe.register_modules(unet=UNet2DConditionModel.from_config(config).eval())
    return pipe


def _sd2(in_channels: int) -> StableDiffusionPipeline:
    pipe = tiny_pipeline(prediction_type="v_prediction")
    pipe.register_modules(unet=tiny_sd2_unet(in_channels))
    return pipe


def _sdxl(in_channels: int) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    first = tiny_text_config(TEXT_DIM)
    second = CLIPTextConfig(**(first.to_dict() | {"projection_dim": TEXT_DIM}))
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        force_upcast=False,
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=tiny_sdxl_unet(in_channels),
        scheduler=UniPCMultistepScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe.tokenizer.model_max_length == TOKENS
    return pipe


_TEXT: dict[str, Callable[[int], Any]] = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl}


def _as(pipe: Any, kind: str, base: str) -> Any:
    """The same parts in another stock pipeline."""
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    extra: dict[str, Any] = {"add_watermarker": False} if base == "sdxl" else dict(_PLAIN)
    family = "sdxl" if base == "sdxl" else "sd"
    if "control" in kind:
        extra["controlnet"] = [_control(pipe.unet, seed) for seed in range(2)]
        if kind == "control":
            extra["controlnet"] = extra["controlnet"][0]
    classes = _CLASSES["control" if "control" in kind else kind.partition(" ")[0]]
    other = classes[family](**parts, **extra)
    other.set_progress_bar_config(disable=True)
    return other


def _control(unet: UNet2DConditionModel, seed: int) -> ControlNetModel:
    """A ControlNet that has learned something: its last convolutions are not zero."""
    torch.manual_seed(seed)
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8)).eval()  # 4 ×, as the VAE
    zeroed = [*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out]
    with torch.no_grad():
        for layer in zeroed:
            assert isinstance(layer, nn.Conv2d)
            layer.weight.normal_(0, 0.3)
    return control
