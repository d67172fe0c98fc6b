"""The pictures from which the demo's models learn, as plain arrays: recipes do not know where they come from."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class LabelledPictures:
    """N square pictures with all that is true of them."""

    pixels: UInt8[np.ndarray, "n h w 3"]
    instances: UInt8[np.ndarray, "n h w"]  # 0 = nobody, k = the k-th person
    patches: UInt8[np.ndarray, "n g g parts"]  # how much of each patch shows each part, 0 … 255
    captions: list[str]
    looks: list[list[str]]  # per picture and person, a phrase about that person's looks
    factors: list[list[list[str]]]  # per picture and person, the values of the identity factors, in a fixed order

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, count: int) -> "LabelledPictures":
        """The first `count` of them."""
        return LabelledPictures(**{field.name: getattr(self, field.name)[:count] for field in fields(self)})

    def save(self, path: Path) -> None:
        """Write the arrays as .npz (no objects: texts travel as one UTF-8 JSON array of bytes)."""
        import json

        text = json.dumps([self.captions, self.looks, self.factors]).encode()
        np.savez(
            path,
            pixels=self.pixels,
            instances=self.instances,
            patches=self.patches,
            text=np.frombuffer(text, np.uint8),
        )

    @classmethod
    def load(cls, path: Path) -> "LabelledPictures":
        """Read what `save` wrote."""
        import json

        with np.load(path, allow_pickle=False) as data:
            captions, looks, factors = json.loads(data["text"].tobytes())
            return cls(data["pixels"], data["instances"], data["patches"], captions, looks, factors)


def to_tensor(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Pixels to [-1, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
