"""The recipe of CLIP, a few steps of it."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, CLIPVisionModelWithProjection

from infra.zoo.clip import _contrast, train_clip
from infra.zoo.dense_labels import mirrored as mirror
from infra.zoo.pictures import LabelledPictures
from infra.zoo.tokenizers import clip_tokenizer


def test_a_few_steps_give_a_stock_clip(
    pictures: LabelledPictures, tmp_path: Path, check_safe: Callable[[Path], None]
) -> None:
    tokenizer = clip_tokenizer([*pictures.captions, *(look for looks in pictures.looks for look in looks)])
    lines: list[str] = []
    train_clip(pictures, tokenizer, tmp_path / "clip", 0.02, log=lines.append)
    assert lines[0].startswith("clip step 0 ")
    check_safe(tmp_path / "clip")
    model, processor = (kind.from_pretrained(tmp_path / "clip") for kind in (CLIPModel, CLIPProcessor))
    images = [Image.fromarray(pixels) for pixels in pictures.pixels[:2]]
    inputs = processor(text=pictures.captions[:2], images=images, padding=True, return_tensors="pt")
    with torch.inference_mode():
        seen = model(**inputs)
    assert seen.image_embeds.shape == seen.text_embeds.shape == (2, 128)
    # Both towers on their own: the base begins with one, MoA looks through the other.
    CLIPTextModel.from_pretrained(tmp_path / "clip")
    CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip")
    train_clip(pictures, tokenizer, tmp_path / "more", 0.005, log=lines.append, start=tmp_path / "clip")
    check_safe(tmp_path / "more")


def test_equal_texts_are_all_right_answers() -> None:
    vectors, scale = torch.eye(3), torch.tensor(5.0)
    twins = torch.stack([vectors[0], vectors[0], vectors[2]])
    assert _contrast(twins, twins, ["a", "a", "b"], scale) == pytest.approx(0.6931 * 2 / 3, abs=1e-3)
    assert _contrast(twins, twins, ["a", "c", "b"], scale) == pytest.approx(0.6931 * 2 / 3, abs=1e-3)
    assert _contrast(vectors, vectors, ["a", "b", "c"], scale) == pytest.approx(0, abs=1e-3)
    # Two pictures of one text, told apart: twice as wrong as necessary.
    assert _contrast(vectors, vectors, ["a", "a", "b"], scale) > 1


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a photo of a man and a woman in the snow", "a photo of a woman and a man in the snow"),
        ("a photo of a woman and a woman in a library", "a photo of a woman and a woman in a library"),
        ("a photo of a man holding a book on the beach", "a photo of a man holding a book on the beach"),
    ],
)
def test_two_people_change_places_in_a_mirror(caption: str, mirrored: str) -> None:
    assert mirror(caption) == mirrored
