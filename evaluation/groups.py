"""The kinds of prompts, each with its own numbers: a release can keep people in contexts and lose them in styles."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from evaluation.measures import Measure
from evaluation.scores import Scores
from evaluation.summary import summarise_columns


class GroupTable(BaseModel):
    """One group of prompts (FastComposer's are accessory, style, action and context): its measures, as in `Metrics`.

    `pictures` counts those of one subject and of two.
    """

    model_config = ConfigDict(frozen=True)

    group: str
    prompts: int
    pictures: int
    measures: Mapping[str, Measure]


def group_tables(scores: Scores) -> list[GroupTable]:
    """A table for each group, in the order of the prompts."""
    by_prompt = sorted(scores.cells, key=lambda cell: cell.prompt)
    tables = []
    for group in dict.fromkeys(cell.group for cell in by_prompt):
        part = scores.where(lambda cell, group=group: cell.group == group)  # type: ignore[misc]
        measures = {name: found for name, found in summarise_columns(part).items() if found is not None}
        prompts = len({cell.prompt for cell in part.cells})
        tables.append(GroupTable(group=group, prompts=prompts, pictures=len(part.cells), measures=measures))
    return tables
