"""What has been measured so far, by arm, training seed, length and sampling, as columns for the intervals."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from tests.benchmarks.claims.drawing import Gallery
from tests.benchmarks.claims.intervals import Estimate, Values, difference, estimate
from tests.benchmarks.claims.plan import DEFAULT, PRIOR, Arm, Drawn, Protocol, Sampling

# Measure -> (column, column that it is divided by). The prior's own row has its own columns under "prior_…", too.
MEASURES: dict[str, tuple[str, str | None]] = {
    "identity": ("identity", None),
    "prompt": ("prompt_consistency", None),
    "scene": ("scene_accuracy", None),
    "object": ("object_accuracy", None),
    "object ratio": ("object_accuracy", "prior_object_accuracy"),
    "background": ("swap_difference", "seed_difference"),
    "swap": ("swap_difference", None),
    "fidelity": ("prior_fidelity", None),
    "variation": ("variation", None),
    "variation ratio": ("variation", "prior_variation"),
    "router IoU": ("router_iou", None),
    "router AUC": ("router_auc", None),
    "blob AUC": ("router_auc_centre_blob", None),
    "other AUC": ("router_auc_other_picture", None),
    "contrast": ("router_contrast", None),
    "area": ("subject_area", None),
    "mixing": ("separation", None),
    "minimum identity": ("minimum_identity", None),
    "two people": ("two_people", None),
}


class Results:
    """Everything in a gallery for some training seeds."""

    def __init__(self, gallery: Gallery, seeds: Sequence[int]) -> None:
        self.gallery, self.seeds = gallery, tuple(seeds)
        self._read = cache(gallery.read)

    def found(self, arm: Arm, step: int, protocol: Protocol, sampling: Sampling = DEFAULT) -> dict[int, dict[str, Any]]:
        """Training seed → result, of those that are there."""
        if arm.kind == "prior":  # the same beside every training seed
            result = self._read(Drawn(PRIOR, 0, 0, DEFAULT, protocol))
            return dict.fromkeys(self.seeds, result) if result else {}
        if arm.kind == "shipped":  # one training
            result = self._read(Drawn(arm, 0, 0, sampling, protocol))
            return {self.seeds[0]: result} if result else {}
        by_seed = {seed: self._read(Drawn(arm, seed, step, sampling, protocol)) for seed in self.seeds}
        return {seed: result for seed, result in by_seed.items() if result}

    def column(self, name: str, arm: Arm, step: int, protocol: Protocol, sampling: Sampling = DEFAULT) -> Values:
        """One column of the results; empty where it was not measured."""
        columns = {
            seed: {**result["columns"], **result["pairs"]}.get(name, {})
            for seed, result in self.found(arm, step, protocol, sampling).items()
        }
        return {seed: column for seed, column in columns.items() if column}

    def estimate(
        self, measure: str, arm: Arm, step: int, protocol: Protocol, sampling: Sampling = DEFAULT
    ) -> Estimate | None:
        """A measure with its interval."""
        top, bottom = MEASURES[measure]
        above = self.column(top, arm, step, protocol, sampling)
        return estimate(above, self.column(bottom, arm, step, protocol, sampling) if bottom else None)

    def difference(self, measure: str, first: Arm, second: Arm, step: int, protocol: Protocol) -> Estimate | None:
        """A measure of the first arm minus that of the second, paired."""
        name, divided = MEASURES[measure]
        assert divided is None, f"{measure} is a ratio"
        return difference(self.column(name, first, step, protocol), self.column(name, second, step, protocol))
