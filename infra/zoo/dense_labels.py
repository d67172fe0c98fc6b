"""What makes a small vision transformer see within minutes: every patch is asked what it shows.

From captions alone a transformer of this size stays blind to small things for hours; asked patch by patch (and once for
the picture as a whole) it learns them in minutes. The heads used here are thrown away.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from infra.zoo.pictures import LabelledPictures, to_tensor

WORDS = ("man", "woman")


class DenseHeads(nn.Module):
    """Per patch the share of each part, of a man and of a woman; for the whole picture which of these it has."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.part = nn.Linear(width, parts)
        self.word = nn.Linear(width, len(WORDS))
        self.whole = nn.Linear(width, parts + len(WORDS))

    def forward(
        self,
        whole_BD: Float[Tensor, "B D"],
        patches_BND: Float[Tensor, "B N D"],
        cover_BNP: Float[Tensor, "B N P"],
    ) -> Float[Tensor, ""]:
        """The loss against what `cover` says."""
        part_BNP, word_BNW = cover_BNP[..., : -len(WORDS)], cover_BNP[..., -len(WORDS) :]
        part = -(part_BNP * F.log_softmax(self.part(patches_BND), -1)).sum(-1).mean()
        word = F.binary_cross_entropy_with_logits(self.word(patches_BND), word_BNW)
        present_BP = (cover_BNP.amax(1) > 0.3).float()
        whole = F.binary_cross_entropy_with_logits(self.whole(whole_BD), present_BP)
        return part + 4 * word + 4 * whole


def cover(pictures: LabelledPictures, index: np.ndarray) -> Float[Tensor, "B N P"]:
    """The labels of a batch: per patch the share of each part, then the share that is a man's and that is a woman's."""
    parts = torch.from_numpy(pictures.patches[index]).float().flatten(1, 2) / 255
    grid = pictures.patches.shape[1]
    words = np.zeros((len(index), len(WORDS), *pictures.instances.shape[1:]), np.float32)
    for row, picture in enumerate(index):
        for k, person in enumerate(pictures.factors[picture], start=1):
            words[row, WORDS.index(person[0])] += pictures.instances[picture] == k
    shares = F.adaptive_avg_pool2d(torch.from_numpy(words), grid).flatten(2).transpose(1, 2)
    return torch.cat([parts, shares], -1)


def labelled_batch(
    pictures: LabelledPictures, index: np.ndarray, flip: bool
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B N P"], list[str]]:
    """Pixels, labels and captions of a batch; with `flip` mirrored, so that two people change places in all three."""
    pixels, cover_BNP = pictures.pixels[index], cover(pictures, index)
    captions = [pictures.captions[i] for i in index]
    if flip:
        grid = pictures.patches.shape[1]
        pixels = pixels[:, :, ::-1]
        cover_BNP = cover_BNP.unflatten(1, (grid, grid)).flip(2).flatten(1, 2)
        captions = [mirrored(caption) for caption in captions]
    return to_tensor(pixels), cover_BNP, captions


def mirrored(caption: str) -> str:
    """The caption of the flipped picture: of two people the right one is now named first."""
    words = caption.split()
    if "and" in words:
        first, second = 4, words.index("and") + 2
        words[first], words[second] = words[second], words[first]
    return " ".join(words)


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
