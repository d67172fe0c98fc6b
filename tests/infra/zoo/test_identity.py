"""The recipe of the identity encoder, a few steps of it."""

import json
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from infra.zoo.identity import train_identity_encoder
from infra.zoo.pictures import LabelledPictures, to_tensor


def test_a_few_steps_give_a_stock_resnet(
    pairs: LabelledPictures, tmp_path: Path, check_safe: Callable[[Path], None]
) -> None:
    lines: list[str] = []
    train_identity_encoder(pairs, tmp_path, 0.02, log=lines.append)
    assert lines[0].startswith("identity step 0 ")
    check_safe(tmp_path)
    model = AutoModel.from_pretrained(tmp_path).eval()
    # How people were cut out travels with the model.
    assert model.config.crop == {"margin": 0.05, "background": "grey"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "resnet"
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(
        images=[Image.fromarray(picture) for picture in pairs.pixels[:3]], return_tensors="pt"
    )["pixel_values"]
    # The processor does to a crop what the recipe did.
    assert torch.allclose(pixels, to_tensor(pairs.pixels[:3]), atol=1e-2)
    with torch.inference_mode():
        assert model(pixels).pooler_output.shape == (3, 128, 1, 1)
