"""Stable Diffusion's safety checker, with random weights of its own class."""

from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

from evaluation.safety import open_safety_checker
from infra.errors import UserError
from infra.settings import OptionalModelReference


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue", "red")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: list[Image.Image]) -> Path:
    """A checker to whom red is a bad concept."""
    folder = tmp_path_factory.mktemp("safety")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **small)
    config = CLIPConfig(text_config=CLIPTextConfig(**small).to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.no_grad():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        red, blue, _ = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(pixels)[1]))
        checker.concept_embeds.copy_((red - blue).expand_as(checker.concept_embeds))
        checker.special_care_embeds_weights.fill_(2.0)
        checker.concept_embeds_weights.fill_(0.0)
    checker.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


def test_what_is_flagged_is_told_and_nothing_is_blackened(folder: Path, pictures: list[Image.Image]) -> None:
    checker = open_safety_checker(OptionalModelReference(location=str(folder)))
    assert checker is not None
    assert checker.flagged(pictures) == [True, False, True]
    assert checker.flagged([]) == []
    assert np.asarray(pictures[0])[0, 0].tolist() == [255, 0, 0]


def test_no_checker_is_none() -> None:
    assert open_safety_checker(OptionalModelReference(location="")) is None


def test_a_named_checker_that_is_not_there_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="safety"):
        open_safety_checker(OptionalModelReference(location=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="'transformers'"):
        open_safety_checker(OptionalModelReference(location=str(folder), backend="onnx"))
