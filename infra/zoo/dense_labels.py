"""What makes a small vision transformer see within minutes: every patch is asked what it shows.

From captions alone a transformer of this size stays blind to small things for hours; asked patch by patch (and once for
the picture as a whole) it learns them in minutes. The heads used here are thrown away.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from infra.zoo.pictures import LabelledPictures


class DenseHeads(nn.Module):
    """Per patch the share of each part; for the whole picture which parts it has, and which factors a person has."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, parts)
        self.whole = nn.Linear(width, parts)

    def forward(
        self,
        whole_BD: Float[Tensor, "B D"],
        patches_BND: Float[Tensor, "B N D"],
        cover_BNP: Float[Tensor, "B N P"],
    ) -> Float[Tensor, ""]:
        patch = -(cover_BNP * F.log_softmax(self.patch(patches_BND), -1)).sum(-1).mean()
        present_BP = (cover_BNP.amax(1) > 0.3).float()
        whole = F.binary_cross_entropy_with_logits(self.whole(whole_BD), present_BP)
        return patch + 4 * whole


def cover(pictures: LabelledPictures, index: np.ndarray) -> Float[Tensor, "B N P"]:
    """The labels of a batch: per patch the share of each part."""
    chosen = pictures.patches[index]
    return torch.from_numpy(chosen.reshape(len(index), -1, chosen.shape[-1])).float() / 255


class FactorHeads(nn.Module):
    """One classifier per identity factor on a vector that describes a person."""

    def __init__(self, width: int, factors: list[list[list[str]]]) -> None:
        super().__init__()
        columns = zip(*(person for people in factors for person in people), strict=True)
        self.values = [sorted(set(column)) for column in columns]
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in self.values)

    def forward(self, vector_BD: Float[Tensor, "B D"], factors: list[list[str]]) -> Float[Tensor, ""]:
        loss = vector_BD.new_zeros(())
        for column, (head, values) in enumerate(zip(self.heads, self.values, strict=True)):
            target = torch.tensor([values.index(person[column]) for person in factors])
            loss = loss + F.cross_entropy(head(vector_BD), target)
        return loss / len(self.heads)
