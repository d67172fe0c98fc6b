"""The shipped ControlNet and style LoRA do what they are for, by the zoo's own scores."""

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest

from flows import zoo_guides
from flows.zoo_guides import score_controlnet, score_style
from infra.model_files import ZOO
from infra.settings import Settings, load_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings("demo", tmp_path_factory.mktemp("work"), {})


def test_the_controlnet_puts_people_into_the_pose(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_guides, "_STEPS", 8)
    led, free = score_controlnet(settings, ZOO / "controlnet", 2, 6).values()
    assert 0 < free + 0.1 < led <= 1


def test_the_lora_prints(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_guides, "_STEPS", 8)
    printed, plain = score_style(settings, ZOO / "style-lora", 2, 6).values()
    assert 0 <= printed < plain - 0.2 <= 0.8


def test_histograms_are_shares() -> None:
    black, mixed = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)
    mixed[:, :1] = 255
    assert zoo_guides._histogram(black)[0] == 1 and zoo_guides._histogram(mixed)[0] == 0.75
    assert zoo_guides._histogram(mixed)[-1] == 0.25
