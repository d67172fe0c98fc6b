"""A world so small that the protocol's numbers can be worked out by hand: painted people before a painted scene."""

from collections.abc import Sequence

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from evaluation.identity import CropRule
from evaluation.instruments import InstrumentRecord, Instruments
from evaluation.observations import photographed
from evaluation.people import Found
from evaluation.perceptual import ClipDistance
from evaluation.prompt_consistency import PromptScorer
from evaluation.protocol import Drawing, Drawings, Subject, cells, draw_cells, prior_cells
from evaluation.scores import Scores
from evaluation.scoring import score_pictures
from infra.evaluation_settings import EvaluateSettings, PairPromptSettings, PromptSettings
from tests.tiny_models import tiny_clip

SIDE = 32
# The person always stands here, a second one there; pixels (0, 0) and (0, 1) tell whether there is one.
PLACE, BESIDE = (slice(8, 32), slice(8, 20)), (slice(8, 32), slice(20, 32))
SHOWN, EMPTY = (255, 255, 255), (0, 0, 0)

SETTINGS = EvaluateSettings(
    source="paperfolk",
    split="",
    people=[],
    subjects=4,
    pairs=3,
    prompts=[
        PromptSettings(
            template="a photo of a {word} holding roses on the beach",
            scene="on the beach",
            object="roses",
            group="held",
        ),
        PromptSettings(template="a photo of a {word} in the snow", scene="in the snow", object="", group="context"),
    ],
    pair_prompts=[PairPromptSettings(template="a photo of a {word} in a garden", group="context")],
    seeds=[1, 2],
    inference_steps=1,
    guidance_scale=1.0,
    prior_only_above=800,
    keep_scene=False,
    ip_adapter_scale=0.6,
    batch_size=3,
    workers=1,
)


def paint(
    person: int, scene: tuple[object, ...], shown: bool = True, shift: int = 0, partner: int | None = None
) -> Image.Image:
    """Person number `person` before the scene named `scene`, perhaps with a partner; `shift` grey levels are added to
    the scene."""
    rng = np.random.default_rng(abs(hash(scene)) % 2**32)
    pixels = np.repeat(np.repeat(rng.integers(20, 200, (4, 4, 3), np.uint8), 8, axis=0), 8, axis=1) + np.uint8(shift)
    if shown:
        patch = np.random.default_rng(1000 + person).integers(0, 255, (6, 3, 3), np.uint8)
        pixels[PLACE] = np.repeat(np.repeat(patch, 4, axis=0), 4, axis=1)
    if partner is not None:
        patch = np.random.default_rng(1000 + partner).integers(0, 255, (6, 3, 3), np.uint8)
        pixels[BESIDE] = np.repeat(np.repeat(patch, 4, axis=0), 4, axis=1)
    pixels[0, 0] = SHOWN if shown else EMPTY
    pixels[0, 1] = EMPTY if partner is None else SHOWN
    return Image.fromarray(pixels)


def locate(images: Sequence[Image.Image]) -> list[list[Found]]:
    """The painted people's masks, the largest first."""
    masks = np.zeros((2, SIDE, SIDE), bool)
    masks[0][PLACE] = masks[1][BESIDE] = True
    return [
        [Found.from_mask(mask) for place, mask in enumerate(masks) if np.asarray(image)[0, place, 0] == 255]
        for image in images
    ]


SUBJECTS = [
    Subject(name=f"00000{n}", word="man" if n < 3 else "woman", reference=paint(n, (0, 0)), others=(paint(n, (0, 9)),))
    for n in range(1, 5)
]
STRANGERS = (98, 99)  # whom the prior draws


class World:
    """Draws subjects where the prior drew its person; `shift` moves the scene with the subject, `lost` never show, of
    `strange` somebody else is drawn."""

    def __init__(
        self, shift: int = 0, lost: tuple[str, ...] = (), router: bool = False, strange: tuple[str, ...] = ()
    ) -> None:
        self.shift, self.lost, self.router, self.strange = shift, lost, router, strange
        self.sizes: list[int] = []

    def __call__(
        self, prompts: Sequence[str], subjects: Sequence[Sequence[Subject]], seeds: Sequence[int]
    ) -> list[Drawing]:
        self.sizes.append(len(prompts))
        return [self._draw(*one) for one in zip(prompts, subjects, seeds, strict=True)]

    def _draw(self, prompt: str, people: Sequence[Subject], seed: int) -> Drawing:
        wanted = [one.name for one in people] or [str(number) for number in STRANGERS[: 1 + prompt.count(" and a ")]]
        numbers = [50 + int(name) if name in self.strange else int(name) for name in wanted]
        scene = (len(prompt.replace("woman", "man")), seed)
        shown = wanted[0] not in self.lost
        partner = numbers[1] if len(numbers) == 2 and wanted[1] not in self.lost else None
        picture = paint(numbers[0], scene, shown, self.shift * numbers[0] if people else 0, partner)
        return Drawing(picture, locate([picture])[0][0].region(picture) * 1.0 if self.router and shown else None)


def drawn(world: World, prior: World | None = None) -> tuple[Drawings, Drawings]:
    """Every cell of the protocol by a release and by the prior."""
    release = draw_cells(cells(SETTINGS, SUBJECTS), world, SUBJECTS)
    return release, draw_cells(prior_cells(SETTINGS, SUBJECTS), prior or World(), SUBJECTS)


def scored(world: World) -> Scores:
    """Every picture of a release, measured."""
    tools = instruments()
    return score_pictures(*drawn(world), photographed(SUBJECTS, tools), SETTINGS, tools)


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
    clip = PromptScorer(*tiny_clip())
    records = {"identity": InstrumentRecord(name="transformers", location="here", sha256="0" * 64)}
    return Instruments(TinyIdentity(), clip, locate, ClipDistance(clip), records=records)
