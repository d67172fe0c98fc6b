from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.multimodal import CLIPScore
from torchvision import transforms
from transformers import CLIPModel

from evaluation.prompt_consistency import (
    NOTHING,
    PromptScorer,
    ZeroShot,
    consistency,
    object_sentences,
    scene_sentences,
)
from infra.errors import UserError
from infra.settings import ModelReference, load_settings
from tests.tiny_models import tiny_clip


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(5)]


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch() -> None:
    scorer = PromptScorer(*tiny_clip())
    images = scorer.images(pictures(), batch_size=5)
    assert np.linalg.norm(images, axis=1) == pytest.approx(1, abs=1e-5)
    assert scorer.images(pictures(), batch_size=2) == pytest.approx(images, abs=1e-5)
    sentences = ["a man", "a woman on the beach", "a man in the snow"]
    texts = scorer.texts(sentences)
    assert np.linalg.norm(texts, axis=1) == pytest.approx(1, abs=1e-5)
    # Padding to the longest sentence of a batch must not change the shorter ones.
    assert scorer.texts(sentences, batch_size=1) == pytest.approx(texts, abs=1e-5)


def test_consistency_is_clip_s_own_cosine() -> None:
    model, processor = tiny_clip()
    scorer = PromptScorer(model, processor)
    sentences = ["a man", "a woman on the beach"]
    inputs = processor(text=sentences, images=pictures()[:2], padding=True, return_tensors="pt")
    logits = model(**inputs).logits_per_image.detach().numpy() / model.logit_scale.exp().item()
    found = consistency(scorer.images(pictures()[:2]), scorer.texts(sentences))
    assert found == pytest.approx(np.diag(logits), abs=1e-5)


def test_opened_from_a_folder_of_safetensors(tmp_path: Path) -> None:
    tiny_clip(folder=tmp_path)
    scorer = PromptScorer.open(ModelReference(location=str(tmp_path)))
    assert scorer.images(pictures()) == pytest.approx(PromptScorer(*tiny_clip()).images(pictures()), abs=1e-5)


def test_a_sentence_longer_than_the_text_tower_reads_is_cut() -> None:
    assert PromptScorer(*tiny_clip()).texts(["a very long sentence " * 40]).shape == (1, 12)


def test_classifier_answers_with_the_nearest_label() -> None:
    classify = ZeroShot(["on the beach", NOTHING], np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert classify(np.array([[0.9, 0.1], [0.2, 0.8]])) == ["on the beach", NOTHING]


def test_classifier_is_built_from_mean_sentences() -> None:
    scorer = PromptScorer(*tiny_clip())
    described = scene_sentences(["on the beach", "in the snow"], ["roses"], ["man"])
    classify = scorer.classifier(described)
    images = scorer.images(pictures())
    weights = np.stack([scorer.texts(sentences).mean(axis=0) for sentences in described.values()])
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    assert classify(images) == [list(described)[best] for best in (images @ weights.T).argmax(axis=1)]


def test_sentences_cover_every_way_to_say_the_rest() -> None:
    scenes = scene_sentences(["on the beach"], ["roses", "roses"], ["man", "woman"])
    assert scenes == {
        "on the beach": [
            "a photo of a man holding roses on the beach",
            "a photo of a man on the beach",
            "a photo of a woman holding roses on the beach",
            "a photo of a woman on the beach",
        ]
    }
    objects = object_sentences(["on the beach"], ["roses"], ["man"])
    assert objects == {
        "roses": ["a photo of a man holding roses on the beach"],
        NOTHING: ["a photo of a man on the beach"],
    }
    assert object_sentences([], ["roses"], ["man"])[NOTHING] == ["a photo of a man"]


class _AsTorchmetricsReads(torch.nn.Module):
    """transformers 5 returns more than the embeddings that torchmetrics expects of a CLIP."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(*arguments).pooler_output

    def get_text_features(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(*arguments).pooler_output


def test_it_is_torchmetrics_clip_score_unscaled() -> None:
    """Of pictures that need no scaling; torchmetrics' mean has a factor of 100 and is never below 0."""
    model, processor = tiny_clip(seed=3)
    scorer, metric = PromptScorer(model, processor), CLIPScore(lambda: (_AsTorchmetricsReads(model), processor))
    sentences = ["a man", "a woman on the beach", "a man in the snow", "roses", "a book"]
    ours = scorer.images(pictures()) @ scorer.texts(sentences).T
    for row, picture in enumerate(pictures()):
        for column, sentence in enumerate(sentences):
            score = metric(torch.from_numpy(np.array(picture)).permute(2, 0, 1), sentence)
            assert max(ours[row, column], 0) == pytest.approx(score.item() / 100, abs=1e-5)
    assert (ours > 0.01).any() and ours.std() > 0.01, "the test can tell pictures and sentences apart"


def test_a_larger_picture_is_scaled_without_rounding() -> None:
    """As FastComposer's code does it: to floating point first, antialiased bicubic, middle, mean and deviation."""
    model, processor = tiny_clip()
    about = processor.image_processor
    noise = np.random.default_rng(1).integers(0, 255, (80, 120, 3), np.uint8)
    wanted = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.Normalize(about.image_mean, about.image_std),
        ]
    )(Image.fromarray(noise))
    with torch.no_grad():
        embedded = model.visual_projection(model.vision_model(pixel_values=wanted[None]).pooler_output)
    found = PromptScorer(model, processor).images([Image.fromarray(noise)])[0]
    assert found == pytest.approx(torch.nn.functional.normalize(embedded, dim=-1)[0].numpy(), abs=1e-6)


def test_a_missing_clip_is_one_sentence_with_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published = load_settings("sd15").models.clip
    known = "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
    with pytest.raises(UserError, match=rf"model.safetensors \(SHA-256 {known}\) of openai.*hf download .*32bd6428"):
        PromptScorer.open(published)
    tiny_clip(folder=tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"The clip's model.safetensors of {tmp_path} cannot be read.*put it into"):
        PromptScorer.open(ModelReference(location=str(tmp_path)))
