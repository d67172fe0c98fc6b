import torch
from torch import nn

from moa_model import EMA


def test_average_by_hand_and_its_use() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
        ema = EMA(module, decay=0.15)
        module.weight.fill_(1.0)
        ema.update()  # decay (1 + 0) / (10 + 0) = 0.1
        ema.update()  # min(0.15, 2 / 11) = 0.15
    expected = 1 - 0.1 * 0.15
    torch.testing.assert_close(ema.average["weight"].item(), expected)
    with ema.applied():
        torch.testing.assert_close(module.weight.item(), expected)
    assert module.weight.item() == 1.0


def test_state_round_trip() -> None:
    module = nn.Linear(3, 2)
    ema = EMA(module, 0.9)
    with torch.no_grad():
        module.weight.add_(1)
    ema.update()
    state = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    other = EMA(module, 0.9)
    other.load_state_dict(state)
    other.update()
    ema.update()
    assert other.updates == ema.updates == 2
    assert all(torch.equal(other.average[name], average) for name, average in ema.average.items())
