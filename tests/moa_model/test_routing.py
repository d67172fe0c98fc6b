import pytest
import torch

from infra.errors import UserError
from moa_model.routing import MaskRouter, RecordedRouter, fixed, mix, route, steered


def test_route_and_mix() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]])
    assert torch.equal(route(logits)[0], torch.tensor([[0.5, 0.5]]))
    assert torch.equal(steered(route(logits), torch.tensor([1.0, 0.0]))[1], torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(steered(route(logits), torch.tensor([0.5, 1.0]))[0], torch.tensor([[0.75, 0.25]]))
    prior, personal = torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    assert torch.equal(mix(torch.tensor([[[1.0, 0.0]]]), prior, personal), prior)
    assert torch.equal(mix(torch.tensor([[[0.0, 1.0]]]), prior, personal), personal)


def test_small_weights_count_nothing_and_the_others_stay() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]]])
    router = steered(route(logits), skip_below=0.3)
    assert router[0, 0].tolist() == [1.0, 0.0]
    assert torch.equal(router[0, 1:, 1], route(logits)[0, 1:, 1])
    # The threshold is the router's own word: a weak subject is not skipped for being weak.
    half = steered(route(logits), torch.tensor([0.5]), skip_below=0.3)
    torch.testing.assert_close(half[..., 1], router[..., 1] / 2)


def test_a_mask_is_taken_at_each_layers_size() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[:, :2, :2] = 1
    mask[:, 3, 3] = 1
    router = MaskRouter(mask, (4, 4))
    assert torch.equal(router.weight(0, 16), mask.flatten(1))
    assert torch.equal(router.weight(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.25]]))
    hidden = torch.zeros(3, 4, 8)
    scaled = steered(fixed(router.weight(1, 4), hidden), torch.tensor([1.0, 0.5, 0.0]))
    assert scaled[:, 3, 1].tolist() == [0.25, 0.125, 0.0]
    torch.testing.assert_close(scaled.sum(-1), torch.ones(3, 4))


def test_a_mask_of_another_shape_is_stretched() -> None:
    router = MaskRouter(torch.eye(3)[None], (9, 6))
    assert router.weight(0, 54).shape == (1, 54)


def test_a_recording_of_another_size_is_refused() -> None:
    router = RecordedRouter({0: torch.full((2, 4), 0.25)})
    assert torch.equal(router.weight(0, 4), torch.full((2, 4), 0.75))
    with pytest.raises(UserError, match="same size"):
        router.weight(0, 16)
