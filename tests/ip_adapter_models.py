"""IP-Adapters of the production classes with random weights, in the layout in which they are published."""

from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from tests.tiny_models import IMAGE_DIM

TOKENS = 4


def write_ip_adapter(folder: Path, unet: Any, image_dim: int = IMAGE_DIM) -> Path:
    """{folder}/ip-adapter_tiny.safetensors for this U-Net, and {folder}/image_encoder; the file."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=IMAGE_DIM,
    )
    CLIPVisionModelWithProjection(vision).eval().save_pretrained(folder / "image_encoder", safe_serialization=True)
    projection = ImageProjection(image_dim, unet.config.cross_attention_dim, TOKENS)
    tensors: dict[str, Tensor] = {
        f"image_proj.{name.replace('image_embeds', 'proj')}": value for name, value in projection.state_dict().items()
    }
    layers = dict(unet.named_modules())
    for number, name in enumerate(unet.attn_processors):  # all layers are counted, self-attention included
        if name.endswith("attn2.processor"):
            host = layers[name.removesuffix(".processor")]
            for part in ("k", "v"):
                like = getattr(host, f"to_{part}").weight
                tensors[f"ip_adapter.{number}.to_{part}_ip.weight"] = torch.randn_like(like)
    file = folder / "ip-adapter_tiny.safetensors"
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, file)
    return file
