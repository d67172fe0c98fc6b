"""The heads that ask every patch what it shows."""

import numpy as np
import torch

from infra.zoo.dense_labels import WORDS, DenseHeads, FactorHeads, cover
from infra.zoo.pictures import LabelledPictures


def test_cover_is_a_share_of_every_part(pictures: LabelledPictures) -> None:
    labels_BNP = cover(pictures, np.arange(4))
    parts = pictures.patches.shape[-1]
    assert labels_BNP.shape == (4, 64, parts + len(WORDS))
    assert torch.allclose(labels_BNP[..., :parts].sum(-1), torch.ones(4, 64), atol=0.05)


def test_cover_says_whose_each_patch_is(pictures: LabelledPictures) -> None:
    labels_BNP = cover(pictures, np.arange(len(pictures)))
    for index, people in enumerate(pictures.factors):
        for word, share in zip(WORDS, labels_BNP[index, :, -len(WORDS) :].mean(0), strict=True):
            shown = [k for k, person in enumerate(people, start=1) if person[0] == word]
            assert np.isclose(share, np.isin(pictures.instances[index], shown).mean(), atol=1e-5)


def test_right_answers_cost_less(pictures: LabelledPictures) -> None:
    labels_BNP = cover(pictures, np.arange(4))
    width, parts = labels_BNP.shape[-1], pictures.patches.shape[-1]
    heads = DenseHeads(width, parts)
    with torch.no_grad():
        every = torch.eye(width) * 20
        for head, weight in ((heads.part, every[:parts]), (heads.word, every[parts:]), (heads.whole, every)):
            head.weight.copy_(weight)
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
