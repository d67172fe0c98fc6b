"""The pictures that went wrong, by name, and those that went best: a mean hides both, the best alone advertise."""

from pydantic import BaseModel, ConfigDict

from evaluation.protocol import Cell
from evaluation.scores import Scores


class RankedPicture(BaseModel):
    """A picture at one end of one measure; `note` says why, where the number does not."""

    model_config = ConfigDict(frozen=True)

    measure: str
    value: float
    cell: Cell
    note: str = ""


def worst_pictures(scores: Scores, measure: str = "identity", count: int = 10) -> list[RankedPicture]:
    """The `count` pictures with the lowest `measure`, the worst first; equal ones in the order of the cells.

    `identity` and `prompt_consistency` are those of one subject, `pair_identity` and `pair_prompt_consistency` of two.
    """
    return sorted(_measured(scores, measure), key=lambda one: one.value)[:count]


def best_pictures(scores: Scores, measure: str = "identity", count: int = 10) -> list[RankedPicture]:
    """The `count` pictures with the highest `measure`, the best first; equal ones in the order of the cells."""
    return sorted(_measured(scores, measure), key=lambda one: -one.value)[:count]


def nobody_found(scores: Scores) -> set[Cell]:
    """The pictures in which identity found nobody to compare or, of two, not both."""
    found = [scores.values.get(name, ()) for name in ("face_found", "pair_people_found")]
    return {cell for column in found for cell, value in zip(scores.cells, column, strict=False) if value == 0}


def _measured(scores: Scores, measure: str) -> list[RankedPicture]:
    missing, column = nobody_found(scores), scores.values.get(measure, ())
    nobody = "not everybody is found" if "pair_" in measure else "nobody is found"
    return [
        RankedPicture(measure=measure, value=value, cell=cell, note=nobody if cell in missing else "")
        for cell, value in zip(scores.cells, column, strict=False)
        if value is not None
    ]
