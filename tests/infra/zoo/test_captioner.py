"""The recipe of BLIP-2, a few steps of it."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from infra.zoo.captioner import train_captioner, word_tokenizer
from infra.zoo.pictures import LabelledPictures


def test_a_few_steps_give_a_stock_blip2(
    pictures: LabelledPictures, tmp_path: Path, check_safe: Callable[[Path], None]
) -> None:
    lines: list[str] = []
    train_captioner(pictures, tmp_path / "start", 0.02, log=lines.append)
    train_captioner(pictures, tmp_path, 0.02, log=lines.append, start=tmp_path / "start")
    assert lines[0].startswith("captioner step 0 ") and lines[-1].startswith("captioner step 0 ")
    check_safe(tmp_path)
    model = Blip2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = Blip2Processor.from_pretrained(tmp_path)
    images = [Image.fromarray(pixels) for pixels in pictures.pixels[:2]]
    inputs = processor(images=images, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=6, do_sample=False)
    known = {word for caption in pictures.captions for word in caption.split()}
    for caption in processor.batch_decode(tokens, skip_special_tokens=True):
        assert set(caption.split()) <= known


def test_the_tokenizer_speaks_whole_words(pictures: LabelledPictures) -> None:
    tokenizer = word_tokenizer(pictures.captions)
    for caption in pictures.captions:
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == caption
    assert tokenizer("zebra").input_ids == [tokenizer.unk_token_id]
