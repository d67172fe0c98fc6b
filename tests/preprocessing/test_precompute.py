"""Features from real tiny models, compared with what stock libraries compute."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.settings import ModelReference, ShardSettings, load_settings
from preprocessing.binding import Subject, person_words
from preprocessing.precompute import SENTENCES, Precomputer
from preprocessing.text_encoding import TextEncoders
from tests.tiny_models import tiny_clip, tiny_pipeline

SETTINGS = ShardSettings(
    reference_pixels=32,
    reference_variants=4,
    augmentation=load_settings("demo").shard.augmentation,
    moments=True,
    text=True,
    image_embeds=True,
    max_photos=100,
    max_bytes=10**9,
    batch_size=2,
    workers=1,
)


def noise(seed: int = 0, width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_pipeline(folder=root / "base")
    tiny_clip(folder=root / "clip")
    return root


@pytest.fixture(scope="module")
def precomputer(models: Path) -> Precomputer:
    base = ModelReference(location=str(models / "base"), backend="diffusers")
    return Precomputer(base, ModelReference(location=str(models / "clip")), SETTINGS)


def test_moments_are_the_unscaled_posterior(precomputer: Precomputer, models: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(models / "base", subfolder="vae").eval()
    images = [noise(0), noise(1)]
    moments = precomputer.moments(images)
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1 for image in images])
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    mean, log_variance = np.split(moments.astype(np.float32), 2, axis=1)
    assert moments.dtype == np.float16 and moments.shape == (2, 8, 8, 8)
    np.testing.assert_allclose(mean, posterior.mean, atol=2e-3)
    np.testing.assert_allclose(log_variance, posterior.logvar, atol=2e-3)


def test_text_is_that_of_the_bases_encoders(precomputer: Precomputer, models: Path) -> None:
    encoders = TextEncoders(ModelReference(location=str(models / "base"), backend="diffusers"), "cpu")
    captions = ["a man on the beach", ""]
    text, empty = precomputer.text(captions), precomputer.empty_text()
    np.testing.assert_array_equal(text.states, encoders.encode(captions).states)
    np.testing.assert_array_equal(empty.states[0], text.states[1])
    assert text.states.shape == (2, 32, 16) and text.pooled is None


def test_image_embeds_are_clips_own(precomputer: Precomputer, models: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    # A tower loaded by itself reads its width from the vision half of the configuration, which may say otherwise.
    model = CLIPVisionModelWithProjection.from_pretrained(
        models / "clip", projection_dim=precomputer.embed_width
    ).eval()
    crops = [noise(i) for i in range(3)]
    pixels = CLIPImageProcessor.from_pretrained(models / "clip")(images=crops, return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).image_embeds
    embeds = precomputer.image_embeds(crops)
    assert embeds.shape == (3, precomputer.embed_width)
    np.testing.assert_allclose(embeds.astype(np.float32), expected, atol=2e-3)


def test_word_scores_are_clips_cosines(precomputer: Precomputer, models: Path) -> None:
    """The cosine of a word is that of the mean over its sentences, however the caption spells it."""
    model, processor = tiny_clip()
    crops, words = [noise(0), noise(1)], person_words("a man, a Woman and a MAN")
    with torch.no_grad():
        texts = []
        for word in ("man", "woman", "man"):
            prompts = [sentence.format(word) for sentence in SENTENCES]
            inputs = processor(text=prompts, images=crops, padding=True, return_tensors="pt")
            outputs = model(**inputs)
            texts.append(torch.nn.functional.normalize(outputs.text_embeds.mean(0), dim=0))
    expected = torch.stack(texts) @ outputs.image_embeds.T
    np.testing.assert_allclose(precomputer.word_scores(crops, words), expected, atol=1e-5)


def test_every_model_is_on_the_device_that_was_named(models: Path) -> None:
    base = ModelReference(location=str(models / "base"), backend="diffusers")
    named = Precomputer(base, ModelReference(location=str(models / "clip")), SETTINGS, "meta")
    for model in (named._vae, named._clip, *named._text._encoders):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_another_process_gets_no_model_and_loads_its_own(precomputer: Precomputer) -> None:
    """A model on a GPU would travel as a copy of its memory, and meet inputs that are somewhere else."""

    class Refusing(pickle.Pickler):
        def reducer_override(self, thing: Any) -> Any:
            assert not isinstance(thing, torch.nn.Module | torch.Tensor), f"a {type(thing).__name__} travels"
            return NotImplemented

    def made(by: Precomputer) -> list[np.ndarray]:
        return [by.moments([noise()]), by.text(["a man"]).states, by.image_embeds([noise()])]

    before, sent = made(precomputer), io.BytesIO()
    Refusing(sent).dump(precomputer)
    for ours, theirs in zip(made(pickle.loads(sent.getvalue())), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tokens_are_the_base_models(precomputer: Precomputer) -> None:
    caption = "a woman"
    subject = Subject("woman", 2, 7, 1, (0, 0, 1, 1), None, 1.0)
    assert precomputer.token(caption, subject) == len(precomputer.tokenizer(caption)["input_ids"]) - 2  # before EOS
