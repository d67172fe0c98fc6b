"""The published architectures without their weights: counts and sizes on the meta device, nothing is computed."""

from typing import Any

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import UNet2DConditionModel

from infra.errors import UserError
from moa_model import MoAAdapter, MoAConfig
from moa_model.layers import layer_shapes, penalised_blocks
from tests.benchmarks.full_size import MODELS

SD21: dict[str, Any] = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
# diffusers' other defaults are Stable Diffusion's. Text width, parameters of the U-Net (M), blocks by width.
PUBLISHED: dict[str, tuple[dict[str, Any], int, float, dict[int, int]]] = {
    "sd15": (MODELS["sd15"].config, 768, 859.5, {320: 5, 640: 5, 1280: 6}),
    "sd21": (SD21, 1024, 865.9, {320: 5, 640: 5, 1280: 6}),
    "sdxl": (MODELS["sdxl"].config, 2048, 2567.5, {640: 10, 1280: 60}),
}


def _made(name: str) -> tuple[UNet2DConditionModel, MoAAdapter]:
    config, text_dim, _, _ = PUBLISHED[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        return unet, MoAAdapter(MoAConfig(image_dim=768, text_dim=text_dim, layers=layer_shapes(unet)))


def _count(modules: Any) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[UNet2DConditionModel, MoAAdapter]]:
    return {name: _made(name) for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_architectures(name: str, made) -> None:
    _, text_dim, millions, blocks_of_width = PUBLISHED[name]
    unet, adapter = made[name]
    assert round(_count([unet]) / 1e6, 1) == millions
    blocks = sum(blocks_of_width.values())
    shapes = adapter.config.layers
    assert len(adapter.layers) == len(unet.attn_processors) == 2 * blocks == 2 * (shapes[-1].block + 1)
    assert [shape.cross for shape in shapes] == [False, True] * blocks
    # W_q, W_k, W_v and W_out with its bias; cross-attention takes keys and values from the text.
    self_attention = sum(count * (4 * width + 1) * width for width, count in blocks_of_width.items())
    cross = sum(count * (2 * width + 2 * text_dim + 1) * width for width, count in blocks_of_width.items())
    assert _count(layer.expert for layer in adapter.layers) == self_attention + cross
    routers = sum(2 * count * (2 * width + 2) for width, count in blocks_of_width.items())
    assert _count(layer.router for layer in adapter.layers) == routers
    width = 768 + text_dim  # eq. 8's m = concat(f, t): PE's two layers, two norms, the MLP's two layers
    prompt = (32 + 1) * width + (width + 1) * width + 4 * width + (width + 1) * width + (width + 1) * text_dim
    assert _count([adapter.prompt]) == prompt


def test_11_of_the_16_blocks_are_penalised_and_65_of_sdxls_70(made) -> None:
    penalised = {name: penalised_blocks(adapter.config.layers) for name, (_, adapter) in made.items()}
    assert penalised["sd15"] == penalised["sd21"] == set(range(2, 13))
    assert penalised["sdxl"] == set(range(2, 67))


def test_the_papers_adapter_has_94_million_parameters_in_its_experts(made) -> None:
    experts = _count(layer.expert for layer in made["sd15"][1].layers)
    assert 93.4e6 < experts < 93.6e6


def test_heads_are_read_from_either_kind_of_configuration(made) -> None:
    """SD 1.5 has 8 heads everywhere; SD 2 and SDXL have heads of width 64."""
    assert {shape.heads for shape in made["sd15"][1].config.layers} == {8}
    for name in ("sd21", "sdxl"):
        assert {shape.inner_dim // shape.heads for shape in made[name][1].config.layers} == {64}


@pytest.mark.parametrize("own", PUBLISHED)
@pytest.mark.parametrize("theirs", PUBLISHED)
def test_none_fits_another(own: str, theirs: str, made) -> None:
    if own == theirs:
        return
    unet, adapter = made[theirs][0], made[own][1]
    before = list(map(id, unet.attn_processors.values()))
    with pytest.raises(UserError, match="another base"):
        adapter.attach(unet)
    assert list(map(id, unet.attn_processors.values())) == before
