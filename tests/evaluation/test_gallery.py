"""Which pictures a page shows, and what stands beside them."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from evaluation.charts import data_address
from evaluation.gallery import MOST_SHOTS, SIDE, choose, gather, rankings
from evaluation.protocol import Cell, Drawing
from evaluation.scores import Scores

PEOPLE = [f"{number:06d}" for number in range(15)]


def scores(prompts: int = 40, seeds: int = 4) -> Scores:
    """The field's protocol, of which every thirteenth picture has nobody in it, and two prompts of seven pairs."""
    cells = [
        Cell(subject=name, word="man", prompt=prompt, seed=seed, text=f"prompt {prompt}")
        for prompt in range(prompts)
        for seed in range(seeds)
        for name in PEOPLE
    ]
    cells += [
        Cell(subject=a, word="man", partner=b, partner_word="man", prompt=prompt, seed=0, text=f"both {prompt}")
        for prompt in (prompts, prompts + 1)
        for a, b in zip(PEOPLE[:7], PEOPLE[7:], strict=False)
    ]
    values: dict[str, list[float | None]] = {name: [] for name in ("identity", "face_found", "pair_identity")}
    for place, cell in enumerate(cells):
        missing = place % 13 == 0
        values["identity"].append(None if cell.is_pair else 0.0 if missing else place * 37 % 101 / 101)
        values["face_found"].append(None if cell.is_pair else float(not missing))
        values["pair_identity"].append(place * 37 % 101 / 101 if cell.is_pair else None)
    return Scores(cells, values)


def test_a_small_evaluation_is_shown_whole() -> None:
    small = scores(prompts=2, seeds=2)
    assert set(choose(small)) == set(small.cells)


def test_of_a_large_one_every_prompt_person_and_seed_is_shown_about_as_often() -> None:
    large = scores()
    chosen = choose(large, 320)
    assert len(chosen) == len(set(chosen)) == 320 and set(chosen) <= set(large.cells)
    assert chosen == choose(large, 320), "the same every time"
    ends = {one.cell for ranking in rankings(large) for one in (*ranking.worst, *ranking.best)}
    assert ends <= set(chosen), "the worst and the best are among them"
    prompts = Counter(cell.prompt for cell in chosen)
    people = Counter(name for cell in chosen for name in cell.names)
    assert len(prompts) == 42 and min(prompts.values()) >= 5
    assert set(people) == set(PEOPLE) and max(people.values()) - min(people.values()) <= 6, people
    missing = {cell for cell, found in zip(large.cells, large.values["face_found"], strict=True) if found == 0}
    assert 80 <= len(missing & set(chosen)) <= 110, "those without anybody do not crowd the others out"


def test_a_gallery_of_photographs_is_no_more_than_can_be_sent() -> None:
    """Every shot with production's picture and a prior's of its own, which many shots share."""
    photo = Image.fromarray(astronaut())
    assert photo.size == (512, 512)
    assert MOST_SHOTS * 3 * len(data_address(photo, most=SIDE)) < 15e6


def picture(shade: int) -> Image.Image:
    return Image.new("L", (8, 8), shade)


def test_beside_every_picture_stands_what_was_drawn_and_measured_of_the_same_seed() -> None:
    small = scores(prompts=1, seeds=2)
    cells = small.cells[:4]
    drawn = {cell: Drawing(picture(place), np.eye(2)) for place, cell in enumerate(cells)}
    drawn |= {cells[0].prior: Drawing(picture(100))}
    theirs = {cells[2]: Drawing(picture(200))}
    before = Scores(small.cells, {"identity": [0.25] * len(small.cells)})
    photos = {name: picture(50) for name in reversed(PEOPLE)}
    found = gather(small, cells, drawn, photos, (before, theirs))
    assert [shot.cell.subject for shot in found.shots] == PEOPLE[3::-1], "people in the order of their photos"
    assert list(found.references) == PEOPLE[3::-1], "and no photo of whom is not shown"
    shot = found.shots[1]
    assert shot.cell == cells[2] and shot.production is not None and shot.production.getpixel((0, 0)) == 200
    assert shot.before["identity"] == 0.25 and shot.values["identity"] == pytest.approx(74 / 101)
    assert [one.nobody for one in found.shots] == [False, False, False, True]
    assert found.shots[0].production is None, "what production lacks is left out"
    assert list(found.priors) == [cells[0].prior], "once for all"
    assert (found.drawn, found.nobody) == (len(small.cells), 3)


def test_a_picture_without_its_prior_is_refused() -> None:
    small = scores(prompts=1, seeds=1)
    with pytest.raises(KeyError):
        gather(small, small.cells[:1], {small.cells[0]: Drawing(picture(0))}, {name: picture(0) for name in PEOPLE})
