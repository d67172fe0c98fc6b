"""A table for every kind of prompt."""

from evaluation.groups import GroupTable, group_tables
from tests.evaluation.paper_world import World, scored


def test_each_group_has_the_numbers_of_its_own_pictures() -> None:
    scores = scored(World(shift=3))
    held, context = group_tables(scores)
    assert (held.group, held.prompts, held.pictures) == ("held", 1, 8)
    assert (context.group, context.prompts, context.pictures) == ("context", 2, 8 + 6), (
        "a prompt of pairs is one of them"
    )
    assert "object_accuracy" in held.measures and "object_accuracy" not in context.measures
    assert "pair_identity" in context.measures and "pair_identity" not in held.measures
    values = scores.where(lambda cell: cell.prompt == 0).column("identity")
    assert held.measures["identity"].samples == sum(map(len, values.values())) == 8
    assert GroupTable.model_validate_json(held.model_dump_json()) == held
