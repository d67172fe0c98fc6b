"""People of the evaluation are not trained on: what would let them in stops the run with one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows import evaluation_split
from flows.evaluation_people import read_people
from flows.evaluation_split import check_split
from flows.ingest import new_photos
from flows.run import Run
from flows.signature_workers import SignatureWorker
from flows.workers import IngestWorker
from infra.errors import UserError
from infra.settings import Settings
from preprocessing.catalog import store_shard
from preprocessing.forgetting import find_person, find_photo, forget
from preprocessing.ingesting import chunk
from tests.tiny_models import tiny_clip
from tests.tiny_world import tiny_settings, write_models, write_people
from tests.without_ray import map_shards


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    tiny_clip(folder=root / "models" / "clip")
    write_people(root / "celeba")
    return root


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_split, "map_shards", map_shards)


def trained_on(settings: Settings) -> Run:
    """Ingest the source, and take what was kept for training shards: all that the check looks at."""
    run = Run(settings)
    for index, records in enumerate(chunk(new_photos(settings), 6)):
        worker = IngestWorker(run.store, settings.ingest, run.fingerprints["ingest"], frozenset())
        done = worker({"index": index, "records": records})
        shard = done["shard"]
        rows = [shard, store_shard(run.store, "shard", shard.shard, run.fingerprints["shard"], b"", shard.samples)]
        if settings.near_duplicates.search:
            arguments = (settings.models.clip, settings.signatures, run.fingerprints["signatures"])
            rows.append(SignatureWorker(run.store, *arguments)({"row": shard})["shard"])
        run.catalog.commit(rows, done["photos"])
    return run


def plan(run: Run, start: str = "scratch") -> dict[str, Any]:
    return {"run_id": "r", "catalog_version": run.catalog.version, "start": start}


def folder_of(tmp_path: Path, *photos: Path, change: Callable[[Image.Image], Image.Image] | None = None) -> str:
    folder = tmp_path / "album"
    folder.mkdir()
    Image.effect_noise((32, 32), 90).convert("RGB").save(folder / "someone else.png")
    for index, photo in enumerate(photos):
        if change is None:
            shutil.copy(photo, folder / f"{index}.png")
        else:
            change(Image.open(photo).convert("RGB")).save(folder / f"{index}.png")
    return f"folder:{folder}"


def test_other_people_pass_and_it_is_written_down_once(world: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path / "w", {"ingest.source": folder_of(tmp_path)})
    run = trained_on(settings)
    check_split(run, plan(run))
    (key,) = run.store.list("runs/r/")
    assert b'"people": 2' in run.store.get(key) and b'"trainings": 1' in run.store.get(key)
    check_split(run, plan(run))
    assert run.store.list("runs/r/") == [key]


def test_the_sources_identities_stop_it(world: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path / "w", {"ingest.source": f"celeba:{world / 'celeba'}"})
    run = trained_on(settings)
    with pytest.raises(UserError, match=r"in 4 training photos: celeba:img_celeba/00.* and 1 more: moa forget"):
        check_split(run, plan(run))
    # Whoever is forgotten is no longer there; and is not evaluated on either, so that others move up.
    for _ in range(2):
        for name in [one["name"] for one in read_people(run)]:
            forget(run.store, run.catalog, find_person(run.store, run.catalog, f"celeba:{name}"), "evaluated on")
    with pytest.raises(UserError, match="nobody to evaluate on"):
        check_split(run, plan(run))


def test_a_split_of_the_source_keeps_them_apart(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "celeba", tmp_path / "celeba")
    (tmp_path / "celeba" / "Eval").mkdir()
    lines = [f"{number:06d}.png {0 if number <= 4 else 2}" for number in range(1, 9)]
    (tmp_path / "celeba" / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    spec = f"celeba:{tmp_path / 'celeba'}"
    changes = {"ingest.source": spec, "evaluate.source": spec, "ingest.splits": '["train"]', "evaluate.split": "test"}
    run = trained_on(tiny_settings(world, tmp_path / "w", changes))
    assert run.catalog.counts().kept == 4
    assert {one["name"] for one in read_people(run)} == {"3", "4"}
    check_split(run, plan(run))
    # The splits choose photos; they do not change how one is ingested or evaluated.
    without = Run(tiny_settings(world, tmp_path / "w", {"ingest.source": spec, "evaluate.source": spec}))
    assert without.fingerprints == run.fingerprints
    assert without.evaluation_fingerprint("p") == run.evaluation_fingerprint("p")


def test_the_same_number_in_another_source_is_somebody_else(world: Path, tmp_path: Path) -> None:
    """Paperfolk's evaluation people are read as CelebA's; CelebA's person 1 is not Paperfolk's."""
    changes = {"ingest.source": f"celeba:{world / 'celeba'}", "evaluate.source": "paperfolk"}
    settings = tiny_settings(world, tmp_path / "w", changes)
    write_people(settings.workspace / "photos" / "celeba", people=3, photos_each=1)
    for path in (settings.workspace / "photos" / "celeba" / "img_celeba").iterdir():
        Image.effect_noise((32, 32), 50).convert("RGB").save(path)
    run = trained_on(settings)
    check_split(run, plan(run))


def test_the_same_bytes_stop_it_until_they_are_forgotten(world: Path, tmp_path: Path) -> None:
    photo = world / "celeba" / "img_celeba" / "000002.png"
    settings = tiny_settings(world, tmp_path / "w", {"ingest.source": folder_of(tmp_path, photo)})
    run = trained_on(settings)
    with pytest.raises(UserError, match=r"in 1 training photos: folder:album-.*:0.png \(the bytes of 1's .*000002.png"):
        check_split(run, plan(run))
    forget(run.store, run.catalog, find_photo(run.catalog, "0.png"), "evaluated on")
    check_split(run, plan(run))


def test_a_changed_copy_stops_it_where_near_duplicates_are_looked_for(world: Path, tmp_path: Path) -> None:
    photo = world / "celeba" / "img_celeba" / "000001.png"
    spec = folder_of(
        tmp_path, photo, change=lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((64, 64))
    )
    looking = {"ingest.source": spec, "near_duplicates.search": "true"}
    run = trained_on(tiny_settings(world, tmp_path / "w", looking))
    with pytest.raises(UserError, match=r":0.png \(looks like 1's img_celeba/000001.png\)"):
        check_split(run, plan(run))
    blind = trained_on(tiny_settings(world, tmp_path / "blind", {"ingest.source": spec}))
    check_split(blind, plan(blind))


def test_a_release_that_knew_them_is_no_start(world: Path, tmp_path: Path) -> None:
    """Forgotten since, they are out of the photos; what was learned of them is not."""
    photo = world / "celeba" / "img_celeba" / "000001.png"
    run = trained_on(tiny_settings(world, tmp_path / "w", {"ingest.source": folder_of(tmp_path, photo)}))
    card = {"run_id": "1", "catalog_version": run.catalog.version, "stages": run.fingerprints, "start": "scratch"}
    first = run.releases.publish({"adapter": b"1"}, card)
    forget(run.store, run.catalog, find_photo(run.catalog, "0.png"), "evaluated on")
    card |= {"run_id": "2", "catalog_version": run.catalog.version, "start": f"release:{first.id}"}
    second = run.releases.publish({"adapter": b"2"}, card)
    check_split(run, {**plan(run), "run_id": "fresh"})
    with pytest.raises(UserError, match=r"were in 1 photos of release 1, .*0.png \(the bytes of 1's.*--from-scratch"):
        check_split(run, plan(run, f"release:{second.id}"))
