"""The counts, against published ones and against a counter that watches the arithmetic."""

from collections.abc import Callable

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moa_model import MoAAdapter, Subjects
from moa_model.flops import expert_macs, moa_macs, unet_macs
from moa_model.layers import layer_shapes
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS, tiny_unet


def test_stable_diffusion_15_costs_what_is_published_and_moa_a_quarter_more() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    stock, pixels = unet_macs(unet, (64, 64), 768, 77)
    assert stock / 1e9 == pytest.approx(338.6 + 63.0, rel=1e-3)  # convolutions and projections, attention products
    assert pixels[0] == 4096 and pixels[12] == 64 and len(pixels) == 32
    # 1.256 with the text projected in every step; here it is known.
    assert 1 + moa_macs(layer_shapes(unet), pixels, 77) / stock == pytest.approx(1.2526, abs=1e-3)


def test_the_formula_agrees_with_a_counter() -> None:
    unet = tiny_unet()
    _, pixels = unet_macs(tiny_unet().to("meta"), (8, 8), TEXT_DIM, TOKENS)
    adapter = MoAAdapter.for_unet(unet, IMAGE_DIM).attach(unet)
    feature, word = torch.randn(1, 1, IMAGE_DIM), torch.tensor([[5]])
    bound = {"cross_attention_kwargs": {"moa": Subjects(feature, word)}}
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, TOKENS, TEXT_DIM)

    def macs(work: Callable[[], object]) -> float:
        # The counter knows the plain kernel's two products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 2

    stock = macs(lambda: unet(sample, 500, text))
    first = macs(lambda: unet(sample, 500, text, **bound))  # learns the text's keys and values
    later = macs(lambda: unet(sample, 499, text, **bound))
    crossing = [shape for shape in adapter.config.layers if shape.cross]
    one_text = sum(2 * TOKENS * shape.condition_dim * shape.inner_dim for shape in crossing)
    assert first - later == pytest.approx(2 * one_text)  # the prior's and the expert's
    prompt = macs(lambda: adapter.prompt(feature, text[:, :1], torch.tensor([499.0]), adapter._cross_layers))
    words = one_text / TOKENS  # the changed word's keys and values in every step
    picking = TOKENS * TEXT_DIM  # of the word's embedding from the text
    expected = moa_macs(adapter.config.layers, pixels, TOKENS) - one_text + prompt + words + picking
    assert later - stock == pytest.approx(expected, rel=1e-3)


def test_what_is_not_asked_for_costs_nothing_but_keys() -> None:
    cross, self_attention = layer_shapes(tiny_unet())[1], layer_shapes(tiny_unet())[0]
    router = 2 * 64 * cross.hidden_dim
    assert expert_macs(cross, 64, TOKENS, 0.0) == expert_macs(self_attention, 64, TOKENS, 0.0) == router
    half, whole = (expert_macs(cross, 64, TOKENS, share) - router for share in (0.5, 1.0))
    assert half == whole / 2
    assert expert_macs(self_attention, 64, TOKENS, 0.5) > expert_macs(self_attention, 64, TOKENS, 1.0) / 2
