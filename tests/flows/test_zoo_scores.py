"""Scores of a zoo of untrained models, and where they are written."""

import json
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from transformers import CLIPProcessor, ConvNextImageProcessor, Mask2FormerImageProcessor

from flows import zoo_scores
from flows.zoo import HELD_OUT, Workshop
from flows.zoo_scores import _prompt, _single, score_zoo, table, write_scores
from infra.zoo.clip import image_processor, new_clip
from infra.zoo.identity import new_identity_encoder
from infra.zoo.segmenter import new_segmenter
from infra.zoo.tokenizers import clip_tokenizer
from tests.tiny_models import tiny_blip2, tiny_pipeline


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"), share=0.001)


@pytest.fixture(scope="module")
def weights(shop: Workshop) -> Path:
    """A model of each kind, untrained."""
    torch.manual_seed(0)
    root = shop.root / "zoo" / "weights"
    tokenizer = clip_tokenizer(shop.load(HELD_OUT).captions)
    new_clip(tokenizer).save_pretrained(root / "clip")
    CLIPProcessor(image_processor(), tokenizer).save_pretrained(root / "clip")
    new_identity_encoder().save_pretrained(root / "identity")
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=1.0).save_pretrained(root / "identity")
    new_segmenter().save_pretrained(root / "segmenter")
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / "segmenter")
    tiny_blip2(root / "captioner")
    tiny_pipeline(folder=root / "base")
    return root


def test_every_model_is_scored(shop: Workshop, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_scores, "_STEPS", 1)
    monkeypatch.setattr(zoo_scores, "PLACES", zoo_scores.PLACES[:1])
    readme = weights.parent / "README.md"
    readme.write_text(f"# Zoo\n{zoo_scores._BEGIN}\nold\n{zoo_scores._END}\nlast words\n")
    scores, samples = score_zoo(shop, weights)
    assert set(scores) == {"base", "clip", "captioner", "segmenter", "identity"}
    assert len(samples) == 12 and {sample.size for sample in samples} == {(64, 64)}
    for name, figures in scores.items():
        for figure, value in figures.items():
            assert "PSNR" in figure or 0 <= value <= 1, (name, figure)
    # Untrained, but not worse than chance would have it by luck alone: nothing is computed from the truth itself.
    assert scores["captioner"]["caption exact match"] == 0
    assert 0.3 < scores["identity"]["identity verification ROC-AUC"] < 1

    written = write_scores(scores, samples, weights)
    assert [path.name for path in written] == ["scores.json", "base-samples.png", "README.md"]
    assert json.loads(written[0].read_text()) == scores
    text = readme.read_text()
    assert text.startswith("# Zoo\n") and text.endswith("\nlast words\n") and "old" not in text
    assert table(scores, weights) in text and "`moa zoo train captioner`" in text
    write_scores(scores, samples, weights)
    assert readme.read_text() == text


def test_models_that_are_not_there_are_not_scored(shop: Workshop, tmp_path: Path) -> None:
    assert score_zoo(shop, tmp_path) == ({}, [])
    assert [path.name for path in write_scores({}, [], tmp_path)] == ["scores.json"]


def test_a_caption_is_taken_apart_as_it_is_put_together() -> None:
    assert _single(_prompt("man", "roses", "on the beach")) == ("on the beach", "roses", "man")
    assert _single("a photo of a woman in the city at night") == ("in the city at night", "", "woman")
    assert _single("a photo of a man and a woman on the beach") is None
