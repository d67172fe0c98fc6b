"""A style on the prior branch: the scene is drawn in another hand, the experts are as they were."""

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch

from infra.errors import UserError
from infra.model_files import ZOO
from moa_model.applications import draw, styled

LORA = ZOO / "style-lora"
PROMPT = "a photo of a man on the beach"


def _chroma(picture) -> float:
    """How colourful: mean spread of the channels, in grey levels. A print in one ink has little."""
    pixels = np.asarray(picture, float)
    return float((pixels.max(-1) - pixels.min(-1)).mean())


def test_the_style_is_drawn_and_leaves_nothing_behind(studio, men) -> None:
    man = {"man": studio.crop(men[2])}

    def pictures() -> list:
        return [draw(studio.pipe, studio.adapter, PROMPT, cast, seed=3, **studio.call) for cast in ({}, man)]

    before = pictures()
    with styled(studio.pipe, LORA):
        during = pictures()
    after = pictures()
    assert _chroma(during[0]) < 0.6 * _chroma(before[0])
    assert _chroma(during[1]) < _chroma(before[1])
    assert studio.likeness([during[1]], men)[0].argmax() == 2  # the person is still the person
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a, b)


def test_experts_are_untouched_while_the_prior_is_not(studio) -> None:
    layers, hosts = studio.adapter.layers, studio.pipe.unet
    hidden, text = torch.randn(1, 256, 40), torch.randn(1, studio.pipe.tokenizer.model_max_length, 128)
    cross = next(layer for layer in layers if layer.shape.cross)
    host = hosts.get_submodule(cross.shape.name)

    @torch.no_grad()
    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        return cross.expert(hidden, cross.expert.key_value(text)), host(hidden, encoder_hidden_states=text)

    weights = {name: tensor.clone() for name, tensor in studio.adapter.state_dict().items()}
    expert, prior = outputs()
    with styled(studio.pipe, LORA):
        expert_styled, prior_styled = outputs()
        assert studio.adapter.state_dict().keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in studio.adapter.state_dict().items())
    assert torch.equal(expert, expert_styled)
    assert not torch.allclose(prior, prior_styled, atol=1e-4)
    assert torch.equal(outputs()[1], prior)


def test_strength(studio) -> None:
    plain = draw(studio.pipe, studio.adapter, PROMPT, {}, seed=3, **studio.call)
    with styled(studio.pipe, LORA, strength=0.5):
        half = draw(studio.pipe, studio.adapter, PROMPT, {}, seed=3, **studio.call)
    with styled(studio.pipe, LORA, strength=0.0):
        none = draw(studio.pipe, studio.adapter, PROMPT, {}, seed=3, **studio.call)
    assert np.array_equal(none, plain) and not np.array_equal(half, plain)


def test_no_lora(studio, tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"), styled(studio.pipe, tmp_path / "nothing"):
        pass
