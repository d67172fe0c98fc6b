"""The worst pictures by name."""

from evaluation.worst_pictures import best_pictures, nobody_found, worst_pictures
from tests.evaluation.paper_world import World, scored


def test_the_worst_are_those_without_a_person_then_a_stranger() -> None:
    scores = scored(World(lost=("000002",), strange=("000003",)))
    worst = worst_pictures(scores, count=6)
    assert [one.cell.subject for one in worst] == ["000002"] * 4 + ["000003"] * 2
    assert [one.note for one in worst] == ["nobody is found"] * 4 + [""] * 2
    assert [one.value for one in worst[:4]] == [0.0] * 4 and 0 < worst[4].value <= worst[5].value
    assert worst == worst_pictures(scores, count=6), "the same every time"


def test_pairs_and_prompts_have_their_own_lists() -> None:
    scores = scored(World(lost=("000002",)))
    pairs = worst_pictures(scores, "pair_identity", 2)
    assert all("000002" in one.cell.names and one.note == "not everybody is found" for one in pairs)
    prompts = worst_pictures(scores, "prompt_consistency")
    assert len(prompts) == 10 and [one.value for one in prompts] == sorted(one.value for one in prompts)
    assert worst_pictures(scores, "unheard of") == []


def test_the_best_are_the_other_end_of_the_same_list() -> None:
    scores = scored(World(lost=("000002",), strange=("000003",)))
    everybody = worst_pictures(scores, count=100)
    best = best_pictures(scores, count=4)
    assert [one.value for one in best] == [one.value for one in everybody[:-5:-1]]
    assert not {"000002", "000003"} & {str(one.cell.subject) for one in best}
    assert {cell.subject for cell in nobody_found(scores) if not cell.is_pair} == {"000002"}
    assert all("000002" in cell.names for cell in nobody_found(scores))
