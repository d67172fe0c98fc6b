import pytest
import torch

from moa_model.layers import layer_size
from moa_model.losses import enlarge, masked_loss, mean_over_layers, object_loss, router_loss


def _t(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_masked_loss_by_hand() -> None:
    prediction = _t([[[[1, 2], [3, 4]], [[0, 0], [0, 0]]], [[[5, 5], [5, 5]], [[5, 5], [5, 5]]]])
    target = torch.zeros_like(prediction)
    mask = _t([[[1, 0], [0, 0.5]], [[0, 0], [0, 0]]])
    first = (1 * (1 + 0) / 2 + 0.5 * (16 + 0) / 2) / 1.5  # weights 1 and ½; mean over two channels
    torch.testing.assert_close(masked_loss(prediction, target, mask), _t(first / 2))  # the second has no foreground


def test_background_error_costs_nothing() -> None:
    mask = torch.zeros(1, 4, 4).double()
    mask[:, :2] = 1
    error = torch.zeros(1, 3, 4, 4).double()
    error[:, :, 2:] = 100
    assert masked_loss(error, torch.zeros_like(error), mask) == 0


def test_router_loss_by_hand() -> None:
    weight = _t([[[0.5, 0.25], [1.0, 0.0]]])
    mask = _t([[[0, 0], [0, 1]]])
    total = 0.5**2 + 0.75**2
    torch.testing.assert_close(router_loss(weight, mask), _t(total / 4))
    torch.testing.assert_close(router_loss(weight, mask, "sum"), _t(total))


def test_object_loss_by_hand() -> None:
    attention = _t([[[[0.8, 0.2], [0.1, 0.3]], [[0.9, 0.9], [0.9, 0.9]]], [[[1, 1], [1, 1]], [[1, 1], [1, 1]]]])
    mask = _t([[[[1, 0], [0, 0]], [[1, 1], [0, 0]]], [[[0, 0], [0, 0]], [[1, 0], [0, 0]]]])
    present = _t([[1, 0], [1, 0]])  # the second picture's subject has no pixel
    torch.testing.assert_close(object_loss(attention, mask, present), _t((0.6 / 3 - 0.8) / 2))


def test_object_loss_punishes_attention_on_the_background() -> None:
    mask = _t([[[[1, 0], [0, 0]]]])
    on, off = 0.9 * mask, 0.9 * (1 - mask)
    assert object_loss(off, mask, _t([[1]])) > object_loss(on, mask, _t([[1]]))


def test_maps_of_several_sizes_count_alike() -> None:
    coarse = _t([[[1, 0, 0, 0]]])  # 2 × 2
    fine = torch.ones(1, 1, 16).double()
    mean = mean_over_layers([coarse, fine, fine], (4, 4))[0, 0]
    assert mean.shape == (4, 4)
    torch.testing.assert_close(mean[:2, :2], torch.ones(2, 2).double())
    torch.testing.assert_close(mean[2:, 2:], torch.full((2, 2), 2 / 3).double())
    with pytest.raises(ValueError, match="no layer"):
        mean_over_layers([], (4, 4))


def test_layer_sizes_round_up() -> None:
    assert layer_size((64, 64), 64) == (8, 8)
    assert layer_size((9, 13), 35) == (5, 7)
    assert enlarge(torch.arange(6.0).view(1, 6), (4, 6)).shape == (1, 4, 6)
    with pytest.raises(ValueError, match="7 pixels"):
        layer_size((8, 8), 7)


def test_a_split_batch_has_the_same_loss() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3, 8, 8).double()
    mask = (torch.rand(4, 8, 8) > 0.5).double()
    parts = [masked_loss(a[i : i + 2], b[i : i + 2], mask[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, masked_loss(a, b, mask))
