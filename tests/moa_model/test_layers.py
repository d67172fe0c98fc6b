import pytest
import torch
from torch import nn

from infra.errors import UserError
from moa_model.layers import attention_layers, layer_shapes, penalised_blocks, shapes_digest
from tests.tiny_models import TEXT_DIM, TOKENS, tiny_unet


def test_stable_diffusion_has_32_layers_in_16_blocks_of_which_11_are_penalised() -> None:
    shapes = layer_shapes(tiny_unet())
    assert len(shapes) == 32
    assert [shape.cross for shape in shapes] == [False, True] * 16
    assert [shape.block for shape in shapes] == [index // 2 for index in range(32)]
    assert penalised_blocks(shapes) == set(range(2, 13))
    assert penalised_blocks(shapes, "all") == set(range(16))


def test_order_is_the_order_of_execution() -> None:
    unet = tiny_unet()
    ran: list[str] = []
    for name, layer in attention_layers(unet).items():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, TOKENS, TEXT_DIM))
    assert ran == list(attention_layers(unet))


def test_digest_tells_architectures_apart_and_not_weights() -> None:
    digest = shapes_digest(layer_shapes(tiny_unet()))
    assert digest == shapes_digest(layer_shapes(tiny_unet()))
    assert digest != shapes_digest(layer_shapes(tiny_unet(text_dim=8)))
    assert digest != shapes_digest(layer_shapes(tiny_unet(widths=(8, 16, 16, 24))))


def test_refuses_what_has_no_transformer_blocks_or_unusual_layers() -> None:
    with pytest.raises(UserError, match="no transformer blocks"):
        layer_shapes(nn.Linear(2, 2))
    unet = tiny_unet()
    next(iter(attention_layers(unet).values())).rescale_output_factor = 2.0
    with pytest.raises(UserError, match="down_blocks.0"):
        layer_shapes(unet)
