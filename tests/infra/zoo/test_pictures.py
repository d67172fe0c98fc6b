"""Labelled pictures on disk and as tensors."""

from pathlib import Path

import numpy as np
import torch

from infra.zoo.pictures import LabelledPictures, to_tensor


def test_what_is_saved_is_read(pictures: LabelledPictures, tmp_path: Path) -> None:
    pictures.save(tmp_path / "pictures.npz")
    read = LabelledPictures.load(tmp_path / "pictures.npz")
    for name in ("pixels", "instances", "patches"):
        assert (getattr(read, name) == getattr(pictures, name)).all()
    for name in ("captions", "looks", "factors"):
        assert getattr(read, name) == getattr(pictures, name)
    assert len(read) == len(pictures) == 32


def test_pixels_become_minus_one_to_one() -> None:
    pixels = np.zeros((1, 2, 3, 3), np.uint8)
    pixels[0, 1, 2] = (255, 0, 51)
    tensor = to_tensor(pixels)
    assert tensor.shape == (1, 3, 2, 3) and torch.allclose(tensor[0, :, 1, 2], torch.tensor([1.0, -1.0, -0.6]))
