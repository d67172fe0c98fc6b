"""The recipe of Mask2Former, a few steps of it."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch
from PIL import Image
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

from infra.zoo.pictures import LabelledPictures
from infra.zoo.segmenter import train_segmenter


def test_a_few_steps_give_a_stock_mask2former(
    pictures: LabelledPictures, tmp_path: Path, check_safe: Callable[[Path], None]
) -> None:
    lines: list[str] = []
    train_segmenter(pictures, tmp_path, 0.02, log=lines.append)
    assert lines[0].startswith("segmenter step 0 ")
    check_safe(tmp_path)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    assert model.config.id2label == {0: "person"}
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    inputs = processor(images=[Image.fromarray(pixels) for pixels in pictures.pixels[:2]], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    assert outputs.class_queries_logits.shape == (2, 8, 2)
    assert outputs.masks_queries_logits.shape == (2, 8, 32, 32)  # stride 2
