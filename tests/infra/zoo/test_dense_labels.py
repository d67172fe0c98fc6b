"""The heads that ask every patch what it shows."""

import numpy as np
import torch

from infra.zoo.dense_labels import DenseHeads, FactorHeads, cover
from infra.zoo.pictures import LabelledPictures


def test_cover_is_a_share_of_every_part(pictures: LabelledPictures) -> None:
    labels_BNP = cover(pictures, np.arange(4))
    assert labels_BNP.shape == (4, 64, pictures.patches.shape[-1])
    assert torch.allclose(labels_BNP.sum(-1), torch.ones(4, 64), atol=0.05)


def test_right_answers_cost_less(pictures: LabelledPictures) -> None:
    labels_BNP = cover(pictures, np.arange(4))
    parts = labels_BNP.shape[-1]
    heads = DenseHeads(parts, parts)
    with torch.no_grad():
        for head in (heads.patch, heads.whole):
            head.weight.copy_(torch.eye(parts) * 20)
            head.bias.fill_(-10)
    present_BP = (labels_BNP.amax(1) > 0.3).float()
    right, wrong = heads(present_BP, labels_BNP, labels_BNP), heads(1 - present_BP, labels_BNP.flip(0), labels_BNP)
    assert right.shape == () and right < 0.1 * wrong


def test_factors_can_be_learned(pictures: LabelledPictures) -> None:
    torch.manual_seed(0)
    factors = [people[0] for people in pictures.factors[:8]]
    heads = FactorHeads(16, pictures.factors)
    assert len(heads.heads) == 16
    vectors = torch.nn.Parameter(torch.randn(8, 16))
    optimizer = torch.optim.Adam([vectors, *heads.parameters()], lr=0.1)
    first = heads(vectors, factors).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = heads(vectors, factors)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first
