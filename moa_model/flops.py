"""What the MoA layers cost, in multiply-accumulates (MAC): projections and attention products, as others count them.

Axes of the formulas: N latent pixels, C channels, T text tokens, f the share of pixels that the expert is asked for.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moa_model.layers import LayerShape, attention_layers


def expert_macs(shape: LayerShape, pixels: int, tokens: int, asked: float = 1.0) -> float:
    """One personalization expert and its router on one picture: query, output and attention for the share ``asked``.

    Self-attention's keys and values are needed of every pixel, unless none is asked for. Those of the text are known
    (once a run), but for the changed word, which is left out here.
    """
    projected = asked * pixels * 2 * shape.hidden_dim * shape.inner_dim
    seen = tokens if shape.cross else pixels
    attended = asked * pixels * 2 * seen * shape.inner_dim
    keys = 0.0 if shape.cross or not asked else 2.0 * pixels * shape.condition_dim * shape.inner_dim
    return projected + attended + keys + 2 * pixels * shape.hidden_dim


def unet_macs(unet: nn.Module, latent_size: tuple[int, int], text_dim: int, tokens: int) -> tuple[float, list[int]]:
    """MACs of one forward pass of a U-Net on the "meta" device for one picture, and each attention layer's pixels."""
    pixels: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: pixels.append(args[0].shape[1]))
        for layer in attention_layers(unet).values()
    ]
    sample = torch.empty(1, unet.config.in_channels, *latent_size, device="meta")
    text = torch.empty(1, tokens, text_dim, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(sample, torch.empty(1, device="meta"), encoder_hidden_states=text)
    for handle in handles:
        handle.remove()
    return counter.get_total_flops() / 2, pixels


def moa_macs(
    shapes: Sequence[LayerShape], pixels: Sequence[int], tokens: int, asked: Mapping[int, float] | None = None
) -> float:
    """All MoA layers on one picture; ``asked`` by layer index, 1 where it says nothing."""
    share = asked or {}
    return sum(
        expert_macs(shape, count, tokens, share.get(index, 1.0))
        for index, (shape, count) in enumerate(zip(shapes, pixels, strict=True))
    )
