"""What pictures are measured with, and exactly which models that is: a number means nothing without its instrument."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from evaluation.identity import IdentityEncoder
from evaluation.people import Locate
from evaluation.perceptual import PerceptualDistance
from evaluation.prompt_consistency import PromptScorer
from evaluation.safety import SafetyChecker


class InstrumentRecord(BaseModel):
    """Which model measured: its name, where it was, the pinned commit if any, and its weights' SHA-256.

    The digest is that of the one file of weights, or of all files where there are several.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    location: str
    revision: str = ""
    sha256: str = ""


class About(BaseModel):
    """What the numbers of an evaluation were measured with, as its metrics keep it."""

    perceptual_distance: str
    instruments: dict[str, InstrumentRecord]


@dataclass(frozen=True)
class Instruments:
    """What pictures are measured with; `locate_face` (sd15: MTCNN) finds what identity looks at, if not people.

    `safety=None`: nobody asks whether a picture should not be shown, and the gate says so. `records` names each model.
    """

    identity: IdentityEncoder
    prompts: PromptScorer
    locate: Locate
    perceptual: PerceptualDistance
    locate_face: Locate | None = None
    safety: SafetyChecker | None = None
    records: Mapping[str, InstrumentRecord] = field(default_factory=dict)

    @property
    def about(self) -> About:
        """Name and digest of everything."""
        return About(perceptual_distance=self.perceptual.name, instruments=dict(self.records))
