"""The shipped models at work: the zoo's base, its release 1, and what tells people apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
from PIL import Image

from evaluation.background import background_difference
from evaluation.identity import embed_people, open_identity_encoder
from evaluation.people import Found
from flows.gallery import portrait
from flows.painting import Painter, locate_people
from infra.model_files import ZOO
from infra.settings import load_settings


@dataclass(frozen=True)
class Studio:
    pipe: Any
    adapter: Any
    crop: Callable[[Image.Image], Image.Image]
    everybody: Callable[[Image.Image], list[tuple[Image.Image, np.ndarray]]]
    call: dict[str, Any]
    people: Callable[[Sequence[Image.Image]], Sequence[Sequence[Found]]]
    identity: Any

    def likeness(self, drawn: Sequence[Image.Image], references: Sequence[Image.Image]) -> np.ndarray:
        """Cosine of the person in each drawn picture with the person in each reference."""
        vectors = [embed_people(images, self.people(images), self.identity) for images in (drawn, references)]
        return vectors[0] @ vectors[1].T

    def background(self, first: Image.Image, second: Image.Image) -> float:
        """Mean difference outside everybody, in grey levels."""
        difference = background_difference(first, second, self.people([first])[0], self.people([second])[0])
        assert difference is not None
        return difference


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    settings = load_settings("demo", tmp_path_factory.mktemp("work"), {"evaluate.inference_steps": "10"})
    painter = Painter.open(settings, ZOO / "release-1")
    return Studio(
        painter.pipe,
        painter.adapter,
        painter.crop,
        painter.everybody,
        painter.call,
        locate_people(painter.segmenter),
        open_identity_encoder(settings.models.identity),
    )


@pytest.fixture(scope="session")
def men() -> list[Image.Image]:
    return [portrait(number, "man") for number in range(4)]


@pytest.fixture(scope="session")
def women() -> list[Image.Image]:
    return [portrait(number + 50, "woman") for number in range(4)]
