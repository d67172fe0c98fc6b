"""A retraining that looks for near-duplicates, a photo that is taken back, and the retraining after it: real Prefect,
real Ray, two workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from prefect.testing.utilities import prefect_test_harness

from flows import ingest as ingest_stage
from flows import model_stages
from flows.forget import forget, purge
from flows.holdings import holdings
from flows.ingest import ingest
from flows.near_duplicates import duplicates
from flows.retrain import Journey, retrain
from flows.run import Run
from flows.session import prepare_environment
from infra.errors import UserError
from infra.ray_session import ray_session
from infra.settings import Settings
from preprocessing.catalog import load_shard
from preprocessing.forgetting import find_photo
from preprocessing.shards import read_tar
from tests.tiny_world import add_photo, tiny_settings, write_models, write_people, write_photos
from tests.without_ray import map_shards

# The tests of this file follow one another on one workspace.
pytestmark = [pytest.mark.xdist_group("forgetting"), pytest.mark.timeout(900)]  # a minute and a half on an idle machine

IN_FFHQ = "images1024x1024/00000"
CHANGES = {
    "near_duplicates.search": "true",
    "near_duplicates.cosine": "0.9",
    "signatures.workers": "2",
    "ingest.photos_per_shard": "4",
    "train.steps": "2",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos to learn from, one of them a second time, mirrored and in other bytes."""
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    write_people(root / "celeba", people=2, photos_each=1)
    write_photos(root / "ffhq", 8)
    photo = Image.open(root / "ffhq" / IN_FFHQ / "00002.png")
    add_photo(root / "ffhq", 60, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return root


def made(world: Path, workspace: Path) -> Settings:
    return tiny_settings(world, workspace, {**CHANGES, "ingest.source": f"ffhq:{world / 'ffhq'}"})


@pytest.fixture(scope="module")
def settings(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return made(world, tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module", autouse=True)
def session(settings: Settings) -> Iterator[None]:
    prepare_environment()
    with prefect_test_harness(server_startup_timeout=120), ray_session(settings.ray):
        yield


@pytest.fixture(scope="module")
def first(settings: Settings) -> Journey:
    return retrain(settings)


def _trained_on(run: Run) -> set[str]:
    tars = [load_shard(run.store, row) for row in run.training_shards()]
    return {sample.json()["origin"] for tar in tars for sample in read_tar(tar)}


def test_a_copy_is_found_and_not_trained_on(settings: Settings, first: Journey) -> None:
    run = Run(settings)
    assert [one.stage for one in first.stages][:3] == ["ingest", "duplicates", "caption"]
    (row,) = run.catalog.photos("duplicates")
    assert row.origin == f"{IN_FFHQ}/00060.png" and "00002.png (" in row.detail
    assert row.origin not in _trained_on(run) and len(_trained_on(run)) > 1
    card = run.releases.manifest(run.releases.resolve(str(first.release)))["lineage"]
    assert card["stages"] == run.fingerprints and "duplicates" in card["stages"]
    assert len(run.store.list(f"runs/{first.run_id}/split-")) == 1  # nobody of the evaluation was there


def test_who_does_the_work_does_not_matter(
    world: Path, settings: Settings, first: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors on Ray; one worker that takes the shards in reverse."""
    alone = made(world, tmp_path)
    for module in (ingest_stage, model_stages):
        monkeypatch.setattr(module, "map_shards", map_shards)
    ingest.fn(alone)
    duplicates.fn(alone)
    for stage in ("ingest", "signatures", "duplicates"):
        assert Run(alone).catalog.shards(stage) == Run(settings).catalog.shards(stage)
        assert Run(alone).catalog.photos(stage) == Run(settings).catalog.photos(stage)


def test_after_forgetting_nothing_is_made_again_but_the_training(settings: Settings, first: Journey) -> None:
    run = Run(settings)
    origin = min(_trained_on(run))
    (row,) = find_photo(run.catalog, origin).photos
    samples = sum(shard.samples for shard in run.training_shards())
    forget(settings, origin, None, "asked for")
    purge(settings, confirmed=True)
    again = retrain(settings)
    assert [(one.stage, one.done) for one in again.stages[:5]] == [
        ("ingest", 0), ("duplicates", 0), ("caption", 0), ("segment", 0), ("shard", 0),
    ]  # fmt: skip
    assert again.release == 2 and not again.nothing_new
    assert origin not in _trained_on(run) and sum(shard.samples for shard in run.training_shards()) == samples - 1
    held = holdings(run, {row.key}).releases
    assert [(one.release.number, one.photos, one.through and one.through.number) for one in held] == [
        (1, 1, None),
        (2, 0, 1),  # it went on from release 1
    ]
    needles = (f"{row.key}.jpg".encode(), f"{row.key}.embed.npy".encode())
    files = [path for path in Path(settings.store_root).rglob("*") if path.is_file()]
    assert not any(needle in path.read_bytes() for path in files for needle in needles)
    assert retrain(settings).nothing_new


def test_somebody_to_evaluate_on_among_the_photos_stops_the_run(
    settings: Settings, world: Path, first: Journey
) -> None:
    photo = world / "celeba" / "img_celeba" / "000001.png"
    origin = add_photo(world / "ffhq", 70, Image.open(photo).resize((128, 128), Image.Resampling.BICUBIC))
    with pytest.raises(UserError, match=r"00070.png \(looks like 1's .*000001.png\): moa forget"):
        retrain(settings)
    forget(settings, origin, None, "evaluated on")
    assert retrain(settings).nothing_new
