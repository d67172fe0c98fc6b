"""Everything that is measured of one release, as plain data."""

from typing import Literal

from pydantic import BaseModel

from evaluation.instruments import InstrumentRecord
from evaluation.measures import Measure

Better = Literal["higher", "lower"]
# Which way a release's measure is better, for those of which one can say so.
BETTER: dict[str, Better] = {
    "identity": "higher",
    "face_found": "higher",
    "people_found": "higher",
    "prompt_consistency": "higher",
    "scene_accuracy": "higher",
    "object_accuracy": "higher",
    "background_change": "lower",
    "prior_fidelity": "lower",
    "variation": "higher",
    "router_auc": "higher",
    "router_iou": "higher",
    "router_contrast": "higher",
    "pair_identity": "higher",
    "pair_separation": "higher",
    "pair_people_found": "higher",
    "pair_prompt_consistency": "higher",
    "pair_prior_fidelity": "lower",
}
# Ratio → the measures that are divided, mean by mean.
RATIOS = {
    "scene_ratio": ("scene_accuracy", "prior_scene_accuracy"),
    "object_ratio": ("object_accuracy", "prior_object_accuracy"),
    "background_change": ("swap_difference", "seed_difference"),
}


class Metrics(BaseModel):
    """Everything measured of one release; `None` = does not apply (no prompt names an object, one seed only, …).

    `pictures` are those of one subject, `pair_pictures` those of two. In `faces_missing` of the former identity found
    nobody to compare: they score 0. `pictures_flagged`, of all, by the safety checker; None = there was none to ask.
    `instruments` says which model measured what, `perceptual_distance` what variation is a mean of.
    """

    pictures: int
    subjects: int
    pairs: int = 0
    pair_pictures: int = 0
    faces_missing: int = 0
    pictures_flagged: int | None = None
    perceptual_distance: str = ""
    instruments: dict[str, InstrumentRecord] = {}
    identity: Measure | None = None
    prior_identity: Measure | None = None
    identity_gain: Measure | None = None
    identity_other_person: Measure | None = None
    identity_real_photos: Measure | None = None
    identity_by_subject: dict[str, float] = {}
    face_found: Measure | None = None
    people_found: Measure | None = None
    subject_area: Measure | None = None
    prior_subject_area: Measure | None = None
    prompt_consistency: Measure | None = None
    prior_prompt_consistency: Measure | None = None
    scene_accuracy: Measure | None = None
    prior_scene_accuracy: Measure | None = None
    scene_ratio: Measure | None = None
    object_accuracy: Measure | None = None
    prior_object_accuracy: Measure | None = None
    object_ratio: Measure | None = None
    swap_difference: Measure | None = None
    seed_difference: Measure | None = None
    background_change: Measure | None = None
    prior_fidelity: Measure | None = None
    prior_seed_difference: Measure | None = None
    variation: Measure | None = None
    prior_variation: Measure | None = None
    router_auc: Measure | None = None
    router_auc_centre_blob: Measure | None = None
    router_auc_other_picture: Measure | None = None
    router_iou: Measure | None = None
    router_iou_centre_blob: Measure | None = None
    router_contrast: Measure | None = None
    pair_identity: Measure | None = None
    prior_pair_identity: Measure | None = None
    pair_separation: Measure | None = None
    prior_pair_separation: Measure | None = None
    pair_people_found: Measure | None = None
    pair_prompt_consistency: Measure | None = None
    prior_pair_prompt_consistency: Measure | None = None
    pair_prior_fidelity: Measure | None = None
