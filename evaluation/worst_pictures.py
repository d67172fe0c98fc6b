"""The pictures that went wrong, by name: a mean hides them, and a report that shows only the best is advertising."""

from pydantic import BaseModel, ConfigDict

from evaluation.protocol import Cell
from evaluation.scores import Scores


class WorstPicture(BaseModel):
    """A picture at the bottom of one measure; `note` says why, where the number does not."""

    model_config = ConfigDict(frozen=True)

    measure: str
    value: float
    cell: Cell
    note: str = ""


def worst_pictures(scores: Scores, measure: str = "identity", count: int = 10) -> list[WorstPicture]:
    """The `count` pictures with the lowest `measure`, the worst first; equal ones in the order of the cells.

    `identity` and `prompt_consistency` are those of one subject, `pair_identity` and `pair_prompt_consistency` of two.
    """
    found = scores.values.get("pair_people_found" if "pair_" in measure else "face_found", ())
    missing = {cell for cell, value in zip(scores.cells, found, strict=False) if value == 0}
    column = scores.values.get(measure, ())
    measured = [(value, cell) for cell, value in zip(scores.cells, column, strict=False) if value is not None]
    lowest = sorted(measured, key=lambda pair: pair[0])[:count]
    nobody = "not everybody is found" if "pair_" in measure else "nobody is found"
    return [
        WorstPicture(measure=measure, value=value, cell=cell, note=nobody if cell in missing else "")
        for value, cell in lowest
    ]
