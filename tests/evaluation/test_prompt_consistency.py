from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.prompt_consistency import (
    NOTHING,
    PromptScorer,
    ZeroShot,
    consistency,
    object_sentences,
    scene_sentences,
)
from infra.settings import ModelReference
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
