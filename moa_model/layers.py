"""Where a U-Net's attention layers are, in the order in which they run.

A *block* is one transformer block (self- then cross-attention); Stable Diffusion 1.5 has 16, hence 32 MoA layers.
diffusers lists a U-Net's processors as down, up, mid; the layer index of eq. 8 counts down, mid, up, as they run.
"""

import hashlib
import math
import re
from typing import Literal

from diffusers.models.attention_processor import Attention
from pydantic import BaseModel, ConfigDict
from torch import nn

from infra.errors import UserError

_STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


class LayerShape(BaseModel):
    """What an adapter must know of one host attention layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Module path in the U-Net, e.g. ``down_blocks.0.attentions.0.transformer_blocks.0.attn2``."""
    block: int
    """Index of the transformer block in execution order."""
    cross: bool
    """Cross-attention (the condition is text) or self-attention."""
    hidden_dim: int
    condition_dim: int
    inner_dim: int
    heads: int
    qkv_bias: bool
    out_bias: bool


def attention_layers(unet: nn.Module) -> dict[str, Attention]:
    """Every attention layer of the U-Net's transformer blocks by module path, in execution order.

    Raises UserError if the module has none.
    """
    found = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and re.search(r"transformer_blocks\.\d+\.attn[12]$", name)
    }
    if not found:
        raise UserError(
            f"{type(unet).__name__} has no transformer blocks: attach MoA to a Stable Diffusion pipeline or its U-Net."
        )
    return {name: found[name] for name in sorted(found, key=_execution_order)}


def layer_shapes(unet: nn.Module) -> tuple[LayerShape, ...]:
    """The shapes of ``attention_layers(unet)``, in the same order. Raises UserError on unusual layers."""
    shapes: list[LayerShape] = []
    blocks: dict[str, int] = {}
    for name, layer in attention_layers(unet).items():
        _require_plain(name, layer)
        block = blocks.setdefault(name.rpartition(".")[0], len(blocks))
        shapes.append(
            LayerShape(
                name=name,
                block=block,
                cross=name.endswith("attn2"),
                hidden_dim=layer.query_dim,
                condition_dim=layer.cross_attention_dim,
                inner_dim=layer.inner_dim,
                heads=layer.heads,
                qkv_bias=layer.use_bias,
                out_bias=unwrapped(layer.to_out[0]).bias is not None,
            )
        )
    return tuple(shapes)


def shapes_digest(shapes: tuple[LayerShape, ...]) -> str:
    """sha256 over the shapes: equal for every checkpoint of one architecture, different for another."""
    return hashlib.sha256("\n".join(shape.model_dump_json() for shape in shapes).encode()).hexdigest()


def penalised_blocks(shapes: tuple[LayerShape, ...], which: Literal["middle", "all"] = "middle") -> frozenset[int]:
    """Blocks that the router and object losses cover.

    ``middle`` is the paper's: without the first two and the last three blocks (11 of Stable Diffusion 1.5's 16).
    ``all`` keeps the background closer to the prior's at the price of identity per training step.
    """
    count = shapes[-1].block + 1
    return frozenset(range(count) if which == "all" else range(2, count - 3))


def layer_size(latent: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Height and width of the U-Net level that has so many pixels; every level halves, rounding up."""
    for level in range(8):
        height, width = (math.ceil(side / 2**level) for side in latent)
        if height * width == pixels:
            return height, width
    raise ValueError(f"no level of a {latent[0]} × {latent[1]} latent has {pixels} pixels")


def unwrapped(linear: nn.Module) -> nn.Linear:
    """The projection itself, also where a LoRA is wrapped around it."""
    inner = getattr(linear, "base_layer", linear)
    assert isinstance(inner, nn.Linear)
    return inner


def _execution_order(name: str) -> tuple[int, ...]:
    stage, _, rest = name.partition(".")
    return (_STAGES[stage], *(int(number) for number in re.findall(r"\d+", rest)))


def _require_plain(name: str, layer: Attention) -> None:
    """Stable Diffusion's layers have no norms or residuals of their own; the experts do not copy any."""
    extras = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
    strange = [extra for extra in extras if getattr(layer, extra, None) is not None]
    if strange or layer.residual_connection or layer.rescale_output_factor != 1 or layer.fused_projections:
        raise UserError(
            f"The attention layer {name} is not a plain Stable Diffusion layer ("
            f"{', '.join(strange) or 'rescaled or fused'}): undo fuse_qkv_projections() or take another U-Net."
        )
