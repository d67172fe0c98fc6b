"""Pictures of every kind of arm are drawn and measured by the project's instruments, once."""

import json
from collections.abc import Sequence

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.people import Found
from evaluation.protocol import cells
from flows.painting import Painter
from moa_model import MoAAdapter, Scene
from tests.benchmarks.claims.drawing import Gallery, open_painter, pairs
from tests.benchmarks.claims.masked import KeptByMask, put_back
from tests.benchmarks.claims.plan import CURVE, DEFAULT, FULL, KEPT, MOA, PRIOR, Drawn, Protocol, Sampling, arm
from tests.benchmarks.claims.training import kept_folder, train
from tests.benchmarks.claims_world import tiny_world
from tests.moa_model.conftest import trained_like

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


def test_a_scene_kept_by_routers_that_see_nobody_is_the_priors(gallery: Gallery):
    """R_1 = 0.12 everywhere changes the free picture, and is below the edge of a kept one."""
    one = arm("no-object-loss")
    adapter = trained_like(MoAAdapter.from_pretrained(kept_folder(gallery.folder, MOA, 0, 1)))
    for layer in adapter.layers:
        torch.nn.init.zeros_(layer.router.weight)
        layer.router.bias.data.copy_(torch.tensor([1.0, -1.0]))
    adapter.save_pretrained(kept_folder(gallery.folder, one, 0, 1))
    free, kept = (Drawn(one, 0, 1, how, _CELLS) for how in (DEFAULT, KEPT))
    for item in (free, kept):
        gallery.measure(item)
    assert max(gallery.read(kept)["columns"]["prior_fidelity"].values()) < 1.0  # decoded in batches of another size
    assert min(gallery.read(free)["columns"]["prior_fidelity"].values()) > 1.0


@pytest.mark.parametrize("name, batch", [("moa", 3), ("ip-adapter", 1)])
def test_a_mask_of_nobody_keeps_everything_and_one_of_all_nothing(gallery: Gallery, name: str, batch: int):
    settings = gallery.world.with_protocol(_CELLS)
    people = {person.name: person for person in gallery.subjects(_CELLS)}
    some = cells(settings.evaluate, list(people.values()))[:4]
    casts = [{cell.word: gallery.crop(people[cell.subject])} for cell in some if cell.subject]
    call = ([cell.text for cell in some], casts, [cell.seed for cell in some])
    painter = open_painter(settings, kept_folder(gallery.folder, arm(name), 0, 1), arm(name), DEFAULT)
    prior = gallery.pictures(Drawn(PRIOR, 0, 0, DEFAULT, _CELLS))
    for shown, expected in ((False, [prior[cell.prior] for cell in some]), (True, painter.draw(*call))):

        def locate(pictures: Sequence[Image.Image], shown: bool = shown) -> list[list[Found]]:
            everywhere = np.ones((pictures[0].height, pictures[0].width), bool)
            return [[Found.from_mask(everywhere)] if shown else [] for _ in pictures]

        kept = KeptByMask(painter, Painter.open(settings, None), locate, batch).draw(*call)
        for one, other in zip(kept, expected, strict=True):  # of batches of another size
            np.testing.assert_allclose(np.asarray(one.picture, float), np.asarray(other.picture, float), atol=2)


def test_latents_are_put_back_pixel_by_pixel():
    scene = Scene([torch.zeros(1, 4, 2, 2)], [5.0])
    region = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    kept = put_back(scene, region)(None, 0, 5, {"latents": torch.ones(1, 4, 2, 2)})["latents"]
    assert torch.equal(kept, region.expand(1, 4, 2, 2))


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
