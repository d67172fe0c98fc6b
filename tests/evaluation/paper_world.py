"""A world so small that the protocol's numbers can be worked out by hand: a painted person before a painted scene."""

from collections.abc import Sequence

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from evaluation.identity import CropRule
from evaluation.people import Found
from evaluation.prompt_consistency import PromptScorer
from evaluation.protocol import Drawing, Instruments, Subject
from infra.settings import EvaluateSettings, PromptSettings
from tests.tiny_models import tiny_clip

SIDE = 32
# The person always stands here; pixel (0, 0) tells whether there is one.
PLACE = (slice(8, 32), slice(10, 22))
SHOWN, EMPTY = (255, 255, 255), (0, 0, 0)

SETTINGS = EvaluateSettings(
    source="paperfolk",
    split="",
    subjects=4,
    prompts=[
        PromptSettings(template="a photo of a {word} holding roses on the beach", scene="on the beach", object="roses"),
        PromptSettings(template="a photo of a {word} in the snow", scene="in the snow", object=""),
    ],
    seeds=[1, 2],
    inference_steps=1,
    guidance_scale=1.0,
    prior_only_above=800,
    keep_scene=False,
    batch_size=3,
    workers=1,
)


def paint(person: int, scene: tuple[object, ...], shown: bool = True, shift: int = 0) -> Image.Image:
    """Person number `person` before the scene named `scene`; `shift` grey levels are added to the scene."""
    rng = np.random.default_rng(abs(hash(scene)) % 2**32)
    pixels = np.repeat(np.repeat(rng.integers(20, 200, (4, 4, 3), np.uint8), 8, axis=0), 8, axis=1) + np.uint8(shift)
    if shown:
        patch = np.random.default_rng(1000 + person).integers(0, 255, (6, 3, 3), np.uint8)
        pixels[PLACE] = np.repeat(np.repeat(patch, 4, axis=0), 4, axis=1)
    pixels[0, 0] = SHOWN if shown else EMPTY
    return Image.fromarray(pixels)


def locate(images: Sequence[Image.Image]) -> list[list[Found]]:
    """The painted person's mask, or nobody."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[PLACE] = True
    return [[Found.from_mask(mask)] if np.asarray(image)[0, 0, 0] == 255 else [] for image in images]


SUBJECTS = [
    Subject(name=f"00000{n}", word="man" if n < 3 else "woman", reference=paint(n, (0, 0)), others=(paint(n, (0, 9)),))
    for n in range(1, 5)
]


class World:
    """Draws subjects where the prior drew its person; `shift` moves the scene with the subject, `lost` never show."""

    def __init__(self, shift: int = 0, lost: tuple[str, ...] = (), router: bool = False) -> None:
        self.shift, self.lost, self.router = shift, lost, router
        self.sizes: list[int] = []

    def __call__(
        self, prompts: Sequence[str], subjects: Sequence[Subject | None], seeds: Sequence[int]
    ) -> list[Drawing]:
        self.sizes.append(len(prompts))
        drawings = []
        for prompt, subject, seed in zip(prompts, subjects, seeds, strict=True):
            scene = (len(prompt.replace("woman", "man")), seed)
            number = int(subject.name) if subject else 99
            shown = subject is None or subject.name not in self.lost
            picture = paint(number, scene, shown, self.shift * number if subject else 0)
            drawings.append(Drawing(picture, locate([picture])[0][0].region(picture) * 1.0 if self.router else None))
        return drawings


class TinyIdentity:
    """A random ResNet of the production class."""

    crop = CropRule(margin=0.0)

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        self._model = ResNetModel(config).eval()

    @torch.inference_mode()
    def embed(self, crops: Sequence[Image.Image]) -> np.ndarray:
        pixels = np.stack([np.asarray(crop.resize((32, 32)), np.float32) / 127.5 - 1 for crop in crops])
        pooled = self._model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output.flatten(1)
        # Random features are all alike; their deviations from the mean person are not.
        return torch.nn.functional.normalize(pooled - self._centre, dim=-1).numpy()

    @property
    def _centre(self) -> torch.Tensor:
        grey = torch.zeros(1, 3, 32, 32)
        return self._model(grey).pooler_output.flatten(1)


def instruments() -> Instruments:
    """Random models of the production classes, and a locator that knows the world."""
    return Instruments(identity=TinyIdentity(), prompts=PromptScorer(*tiny_clip()), locate=locate)
