"""Which pictures are drawn."""

import itertools
from collections import Counter

import pytest
from PIL import Image

from evaluation.protocol import Cell, Subject, batches, cells, draw_cells, pairs, prior_cells
from infra.settings import load_settings
from tests.evaluation.paper_world import SETTINGS, SUBJECTS, World

PHOTO = Image.new("RGB", (1, 1))


def people(count: int) -> list[Subject]:
    """Men and women in turn."""
    return [Subject(str(number), ("man", "woman")[number % 2], PHOTO) for number in range(count)]


def test_cells_are_every_subject_prompt_and_seed() -> None:
    everything = cells(SETTINGS, SUBJECTS)
    found = [cell for cell in everything if not cell.is_pair]
    assert len(found) == len(set(found)) == 4 * 2 * 2
    assert {cell.text for cell in found if cell.subject == "000004"} == {
        "a photo of a woman holding roses on the beach",
        "a photo of a woman in the snow",
    }
    assert [cell.group for cell in found] == ["held"] * 8 + ["context"] * 8
    assert everything == cells(SETTINGS, SUBJECTS)


def test_the_prior_draws_each_prompt_and_seed_once_per_word() -> None:
    found = prior_cells(SETTINGS, SUBJECTS)
    assert len(found) == len(set(found)) == 2 * 2 * 2 + 3 * 2  # and for pairs once per two words
    assert all(cell.names == () for cell in found)
    assert {cell.prior for cell in cells(SETTINGS, SUBJECTS)} == set(found)


def test_cells_are_drawn_in_batches_and_go_back_to_their_place() -> None:
    world = World()
    todo = cells(SETTINGS, SUBJECTS)
    drawn = draw_cells(todo, world, SUBJECTS, batch_size=5)
    assert list(drawn) == todo
    assert world.sizes == [5, 5, 5, 5, 2]
    assert [len(batch) for batch in batches(todo, 22)] == [22]
    alone = draw_cells(todo[3:4], World(), SUBJECTS)[todo[3]]
    assert alone.picture.tobytes() == drawn[todo[3]].picture.tobytes()


def test_pairs_are_drawn_with_their_own_prompts_and_both_words() -> None:
    found = [cell for cell in cells(SETTINGS, SUBJECTS) if cell.is_pair]
    assert len(found) == 3 * 2, "three pairs, two seeds"
    assert {cell.text for cell in found} == {
        "a photo of a man and a man in a garden",
        "a photo of a woman and a woman in a garden",
        "a photo of a man and a woman in a garden",
    }
    assert {cell.prompt for cell in found} == {2}, "numbered on from the prompts of one subject"
    first, last = found[0], found[-1]
    assert first.names == ("000001", "000002") and first.cast == {"man": ["000001", "000002"]}
    assert last.cast == {"man": [last.subject], "woman": [last.partner]}
    assert first.prior.cast == {} and first.prior.is_pair


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 15, 16])
def test_pairs_are_all_of_them_and_everybody_comes_as_often(count: int) -> None:
    everybody = people(count)
    found = [(first.name, second.name) for first, second in pairs(everybody, 10**6)]
    assert set(found) == set(itertools.combinations([one.name for one in everybody], 2))
    assert len(found) == count * (count - 1) // 2
    for some in range(1, len(found) + 1):
        met = Counter(name for pair in found[:some] for name in pair)
        # In a round of an odd number one person waits.
        assert max(met.values()) - min(met[one.name] for one in everybody) <= 1 + count % 2


def test_in_the_first_round_men_meet_women() -> None:
    assert all(first.word != second.word for first, second in pairs(people(16), 8))


def test_a_cell_of_an_earlier_version_is_a_cell_of_one_subject() -> None:
    stored = '{"subject": "1", "word": "man", "prompt": 0, "seed": 11, "text": "a man"}'
    cell = Cell.model_validate_json(stored)
    assert cell.names == ("1",) and not cell.is_pair and cell.cast == {"man": ["1"]}


def test_the_fields_protocol_is_as_published() -> None:
    """FastComposer's: 15 identities, 40 prompts in four groups, 4 pictures each; and all pairs of the 15."""
    settings = load_settings("sd15").evaluate
    assert [len(list(group)) for _, group in itertools.groupby(settings.prompts, lambda prompt: prompt.group)] == [
        10
    ] * 4
    assert [group for group, _ in itertools.groupby(prompt.group for prompt in settings.prompts)] == [
        "accessory",
        "style",
        "action",
        "context",
    ]
    assert len({prompt.template for prompt in settings.prompts}) == 40
    assert [len([one for one in settings.people if one.word == word]) for word in ("man", "woman")] == [6, 9]
    todo = cells(settings, people(15))
    assert sum(not cell.is_pair for cell in todo) == 15 * 40 * 4
    couples = {cell.names for cell in todo if cell.is_pair}
    assert len(couples) == 105 and sum(cell.is_pair for cell in todo) == 105 * len(settings.pair_prompts) * 4
    assert {prompt.template for prompt in settings.pair_prompts} < {prompt.template for prompt in settings.prompts}
