"""Drawing an evaluation's pictures: stopped and gone on with, by other workers, in other batches."""

import io
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import protocol
from flows import evaluation_pictures
from flows.contenders import AdapterModel
from flows.evaluation_people import read_people
from flows.evaluation_pictures import (
    INDEX,
    OLD_PICTURES,
    batches_of,
    draw_evaluation,
    is_drawn,
    kept,
    packed,
    pictures_address,
    read_drawn,
    read_pictures,
)
from flows.painting import open_pipeline
from flows.run import Run
from flows.session import prepare_environment
from flows.workers import PaintWorker
from infra.ray_session import ray_session
from infra.settings import Settings
from moa_model import MoAAdapter
from tests.moa_model.conftest import trained_like
from tests.tiny_models import IMAGE_DIM
from tests.tiny_world import tiny_settings, write_models, write_people
from tests.without_ray import map_shards

FOLDER = "runs/x/evaluation-y"
# 8 pictures of somebody, 8 of the prior; scenes are kept, and a scene serves several batches.
IN_THREES = {"evaluate.batch_size": "3", "evaluate.pairs": "0", "evaluate.subjects": "2"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    write_people(root / "celeba")
    return root


@pytest.fixture(scope="module")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    unet = open_pipeline(tiny_settings(world, folder).models).unet
    trained_like(MoAAdapter.for_unet(unet, IMAGE_DIM)).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(world: Path, adapter: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One worker, in one go, here."""
    run = _run(world, tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_pictures, "map_shards", map_shards)
        assert draw_evaluation(run, AdapterModel(adapter), read_people(run), FOLDER) == 6
    return run


def test_what_a_failed_worker_had_drawn_is_kept_and_others_go_on_to_the_same_bytes(
    world: Path, adapter: dict[str, bytes], undisturbed: Run, tmp_path: Path
) -> None:
    """First here, one worker that fails at the fifth batch; then on Ray, two workers."""
    run = _run(world, tmp_path, {"evaluate.workers": "2"})
    people, drawn = read_people(run), list[str]()

    class Failing(PaintWorker):
        def work(self, item: dict[str, Any], fetched: None) -> Any:
            if len(drawn) == 4:
                raise RuntimeError("out of memory")
            drawn.append(item["key"])
            return super().work(item, fetched)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_pictures, "map_shards", map_shards)
        patch.setattr(evaluation_pictures, "PaintWorker", Failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            draw_evaluation(run, AdapterModel(adapter), people, FOLDER)
    assert run.store.list(f"{FOLDER}/") == sorted(drawn) and len(drawn) == 4
    prepare_environment()
    with ray_session(run.settings.ray):
        assert draw_evaluation(run, AdapterModel(adapter), people, FOLDER) == 2
    here, there = ({key: each.store.get(key) for key in each.store.list(f"{FOLDER}/")} for each in (run, undisturbed))
    assert here == there and set(here) == {f"{FOLDER}/{INDEX}", *(key for key, _ in kept(run, FOLDER))}
    assert draw_evaluation(run, AdapterModel(adapter), people, FOLDER) == 0, "and without Ray"


def test_two_that_draw_the_same_agree_on_one_list(
    world: Path, adapter: dict[str, bytes], undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first is at its second batch, has batches of another size, and is done earlier."""
    slow, quick = _run(world, tmp_path, {"evaluate.batch_size": "5"}), _run(world, tmp_path)
    people, begun = read_people(slow), list[int]()

    class Overtaken(PaintWorker):
        def work(self, item: dict[str, Any], fetched: None) -> Any:
            begun.append(len(item["cells"]))
            if len(begun) == 2:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(evaluation_pictures, "PaintWorker", PaintWorker)
                    assert draw_evaluation(quick, AdapterModel(adapter), people, FOLDER) == 6
            return super().work(item, fetched)

    monkeypatch.setattr(evaluation_pictures, "map_shards", map_shards)
    monkeypatch.setattr(evaluation_pictures, "PaintWorker", Overtaken)
    assert draw_evaluation(slow, AdapterModel(adapter), people, FOLDER) == len(begun) == 4
    assert slow.store.list(f"{FOLDER}/") == undisturbed.store.list(f"{FOLDER}/"), "the slow one's are gone"
    assert list(read_drawn(slow, FOLDER))[0][1] == list(read_drawn(undisturbed, FOLDER))[0][1]


def test_pictures_of_an_earlier_version_are_read(undisturbed: Run) -> None:
    """One tar of all, in the order of their cells."""
    old, store = "runs/old/evaluation-y", undisturbed.store
    drawn = sorted(read_drawn(undisturbed, FOLDER), key=lambda one: one[0].model_dump_json())
    assert not is_drawn(undisturbed, old)
    store.put(f"{old}/{OLD_PICTURES}", packed(drawn))
    assert is_drawn(undisturbed, old) and pictures_address(undisturbed, old).endswith(OLD_PICTURES)
    one, other = ({cell: png for cell, png, _ in read_drawn(undisturbed, each)} for each in (FOLDER, old))
    assert one == other and len(one) == 16
    assert [cell.prompt for cell, _, _ in read_pictures(undisturbed, old, lambda cell: cell.prompt == 1)] == [1] * 8


def test_a_tar_without_what_is_wanted_is_not_fetched(undisturbed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, get = list[str](), undisturbed.store.get
    monkeypatch.setattr(undisturbed.store, "get", lambda key: fetched.append(key) or get(key))
    (key, cells), *_ = kept(undisturbed, FOLDER)
    assert [cell for cell, _, _ in read_drawn(undisturbed, FOLDER, cells[:2].__contains__)] == cells[:2]
    assert [one for one in fetched if one.endswith(".tar")] == [key]


def test_batches_of_another_size_are_the_same_pictures_up_to_rounding(
    world: Path, adapter: dict[str, bytes], undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_pictures, "map_shards", map_shards)
    run = _run(world, tmp_path, {"evaluate.batch_size": "5"})
    draw_evaluation(run, AdapterModel(adapter), read_people(run), FOLDER)
    one, other = (read_pictures(each, FOLDER) for each in (undisturbed, run))
    assert [cell for cell, _, _ in one] == [cell for cell, _, _ in other] and len(one) == 16
    for (cell, ours, router), (_, theirs, same) in zip(one, other, strict=True):
        change = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
        assert change.max() <= 2 and change.mean() < 0.05, cell
        assert (router is None) == (same is None) == (not cell.names)
        if router is not None:
            np.testing.assert_allclose(router, same, atol=2e-3)


def test_the_noise_of_a_picture_is_its_seeds(undisturbed: Run) -> None:
    """Another seed is another picture by far more than what batches change."""
    drawn = {cell: np.asarray(picture, int) for cell, picture, _ in read_pictures(undisturbed, FOLDER)}
    for cell, picture in drawn.items():
        (other,) = (one for one in drawn if one.seed != cell.seed and one == cell.model_copy(update={"seed": one.seed}))
        assert np.abs(picture - drawn[other]).mean() > 3


def test_every_batch_has_a_name_of_its_own(world: Path, tmp_path: Path) -> None:
    run = _run(world, tmp_path)
    items = batches_of(run.settings, read_people(run), FOLDER)
    assert len({item["key"] for item in items}) == 6 and {len(item["cells"]) for item in items} == {2, 3}
    more = run.settings.evaluate.model_copy(update={"seeds": [1, 2, 3]})
    items += batches_of(run.settings.model_copy(update={"evaluate": more}), read_people(run), FOLDER)
    named = {(item["key"], tuple(item["cells"])) for item in items}
    assert len(named) == len({key for key, _ in named}) == len({cells for _, cells in named}) > 6


def test_pictures_are_pngs_with_their_cells(undisturbed: Run) -> None:
    for cell, png, router in read_drawn(undisturbed, FOLDER):
        assert isinstance(cell, protocol.Cell) and (router is None or router.dtype == np.float16)
        assert Image.open(io.BytesIO(png), formats=["PNG"]).size == (32, 32)


def _run(world: Path, workspace: Path, changes: dict[str, str] | None = None) -> Run:
    settings: Settings = tiny_settings(world, workspace, IN_THREES | (changes or {}))
    assert settings.evaluate.keep_scene
    return Run(settings)
