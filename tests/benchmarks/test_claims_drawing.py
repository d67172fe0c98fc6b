"""Pictures of every kind of arm are drawn and measured by the project's instruments, once."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.claims.drawing import Gallery, pairs
from tests.benchmarks.claims.plan import CURVE, DEFAULT, FULL, KEPT, MASKED, MOA, PRIOR, Drawn, Protocol, Sampling, arm
from tests.benchmarks.claims.training import train
from tests.benchmarks.claims.working import work_through
from tests.benchmarks.claims.world import World
from tests.benchmarks.claims_world import tiny_world

_CELLS = Protocol("tiny", people=4, prompts=2, seeds=(1, 2), pairs=2)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("claims")
    world = tiny_world(folder)
    for name in ("moa", "ip-adapter"):
        train(world, folder, arm(name), 0, 1, lambda step, loss: None)
    return Gallery(world, folder)


def test_the_prior_beside_itself_changes_nothing(gallery: Gallery):
    item = Drawn(PRIOR, 0, 0, DEFAULT, _CELLS)
    gallery.measure(item)
    columns = gallery.read(item)["columns"]
    assert set(columns["prior_fidelity"].values()) <= {0.0}
    assert columns["identity"] == columns["prior_identity"]
    assert len(gallery.pictures(item)) == 2 * 2 * 2  # prompts, seeds, words


@pytest.mark.parametrize("name", ["moa", "ip-adapter"])
def test_an_arm_is_measured_for_every_person_and_couple(gallery: Gallery, name: str):
    item = Drawn(arm(name), 0, 1, DEFAULT, _CELLS)
    gallery.measure(item)
    result = gallery.read(item)
    assert result["pictures"] == 4 * 2 * 2 and len(result["columns"]["identity"]) == 4
    assert len(result["pairs"]["minimum_identity"]) == 2
    drawn = gallery.pictures(item)
    assert all((one.router is not None) == (name == "moa") for one in drawn.values())


def test_what_is_measured_is_not_measured_again(gallery: Gallery):
    item = Drawn(MOA, 0, 1, DEFAULT, _CELLS)
    gallery.measure(item)
    marked = {**gallery.read(item), "mark": 1}
    gallery.path(item).write_text(json.dumps(marked))
    gallery.measure(item)
    assert gallery.read(item)["mark"] == 1


def test_another_sampling_is_another_result(gallery: Gallery):
    plain, weak = (Drawn(MOA, 0, 1, how, _CELLS) for how in (DEFAULT, Sampling(strength=0.5)))
    assert gallery.path(plain) != gallery.path(weak)


@pytest.mark.parametrize("name, how", [("moa", KEPT), ("ip-adapter", MASKED)])
def test_a_kept_scene_is_nearer_to_the_priors_picture(gallery: Gallery, name: str, how: Sampling):
    """By the routers, or by a mask for what has none; strength 0 is the prior either way."""
    change = {}
    for sampling in (DEFAULT, how):
        item = Drawn(arm(name), 0, 1, sampling, _CELLS)
        gallery.measure(item)
        prior = gallery.pictures(Drawn(PRIOR, 0, 0, DEFAULT, _CELLS))
        drawn = gallery.pictures(item)
        assert drawn is not None and prior is not None
        differences = [
            np.abs(np.asarray(one.picture, float) - np.asarray(prior[cell.prior].picture, float)).mean()
            for cell, one in drawn.items()
        ]
        change[sampling] = np.mean(differences)
    assert change[how] <= change[DEFAULT]


def test_the_names_of_what_was_drawn_before_scenes_were_kept_are_as_they_were():
    """Hours of results lie under them."""
    assert Drawn(MOA, 0, 1200, Sampling(strength=0.5), CURVE).key() == "2a0713ba"
    assert Drawn(MOA, 0, 1200, DEFAULT, FULL).key() == "88ba22ef"


def test_couples_are_a_man_and_a_woman_and_all_different(gallery: Gallery):
    people = gallery.subjects(_CELLS)
    couples = pairs(people, 4)
    assert len({tuple(person.name for person in couple) for couple in couples}) == 4
    assert all([person.word for person in couple] == ["man", "woman"] for couple in couples)
    assert pairs([person for person in people if person.word == "man"], 4) == []


def test_a_worker_trains_and_measures_what_is_missing(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(World, "at", lambda folder: gallery.world)
    items = [Drawn(PRIOR, 0, 0, DEFAULT, _CELLS), Drawn(arm("no-layer"), 0, 2, DEFAULT, _CELLS)]
    work_through(tmp_path, items, deadline=float("inf"))
    assert all(Gallery(gallery.world, tmp_path).read(item) for item in items)
    work_through(tmp_path, items, deadline=float("inf"))  # nothing left to do
