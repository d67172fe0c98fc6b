"""Everything that is measured of one release, as plain data."""

from pydantic import BaseModel

from evaluation.measures import Measure


class Metrics(BaseModel):
    """Everything measured of one release; `None` = does not apply (no prompt names an object, one seed only, …)."""

    pictures: int
    subjects: int
    identity: Measure | None = None
    prior_identity: Measure | None = None
    identity_gain: Measure | None = None
    identity_other_person: Measure | None = None
    identity_real_photos: Measure | None = None
    identity_by_subject: dict[str, float] = {}
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
