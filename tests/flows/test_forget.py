"""`moa forget` as people type it: what it lists, what it changes, and what it refuses."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from evaluation.protocol import Cell
from flows import ingest as ingest_stage
from flows import job_records, session
from flows.evaluation_people import note_people
from flows.evaluation_pictures import packed
from flows.forget import forget, purge
from flows.holdings import EVALUATED, evaluations_showing, holdings, versions_holding
from flows.ingest import ingest, new_photos
from flows.job_records import Attempt
from flows.run import Run
from infra.errors import UserError
from infra.settings import Settings
from preprocessing.catalog import store_shard
from preprocessing.forgetting import find_photo
from preprocessing.forgetting import forget as forget_photos
from tests.tiny_world import tiny_settings, write_models, write_people
from tests.without_ray import map_shards


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    write_people(root / "celeba", people=5, photos_each=2)
    return root


@pytest.fixture
def settings(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Ten photos of five people, ingested as two shards of which the training shards are made up."""
    shutil.copytree(world / "celeba", tmp_path / "celeba")
    monkeypatch.setattr(ingest_stage, "map_shards", map_shards)
    changed = {"ingest.source": f"celeba:{tmp_path / 'celeba'}"}
    settings = tiny_settings(world, tmp_path / "w", changed)
    read(settings)
    return settings


def read(settings: Settings) -> None:
    run = Run(settings)
    ingest.fn(settings)
    for row in run.pending("shard"):
        tar = run.store.get(row.object_key)
        done = store_shard(run.store, "shard", row.shard, run.fingerprints["shard"], tar, row.samples, row.source)
        run.catalog.commit([done], [])


def released(run: Run, name: str, start: str = "scratch") -> str:
    card = {"run_id": name, "catalog_version": run.catalog.version, "stages": run.fingerprints, "start": start}
    return run.releases.publish({"adapter": name.encode()}, card).id


FIRST, LAST = "img_celeba/000001.png", "img_celeba/000010.png"


def key_of(run: Run, origin: str) -> str:
    return next(row.key for row in run.catalog.photos("ingest", replaced=True) if row.origin == origin)


def test_a_dry_run_lists_and_changes_nothing(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(settings)
    released(run, "one")
    version = run.catalog.version
    forget(settings, FIRST, None, "asked for", dry_run=True)
    said = capsys.readouterr().out
    assert f"celeba:{FIRST}" in said and "shards/ingest/" in said and "shards/shard/" in said
    assert f"catalog versions 0 to {version}" in said and "release 1 (" in said and "Nothing was changed" in said
    assert run.catalog.version == version


def test_releases_are_listed_exactly_also_through_their_start(settings: Settings, tmp_path: Path) -> None:
    run = Run(settings)
    one = released(run, "one")
    forget_photos(run.store, run.catalog, find_photo(run.catalog, FIRST), "asked for")
    two = released(run, "two", f"release:{one}")
    three = released(run, "three", f"release:{two}")
    released(run, "four")
    of_first = holdings(run, {key_of(run, FIRST)}).releases
    assert [(held.release.id, held.photos, held.through and held.through.id) for held in of_first] == [
        (one, 1, None),
        (two, 0, one),
        (three, 0, two),
    ]
    of_last = holdings(run, {key_of(run, LAST)}).releases
    assert [held.photos for held in of_last] == [1, 1, 1, 1]


def evaluated(run: Run, folder: str, name: str, keys: list[str], older: bool = False) -> None:
    """An evaluation's folder in which this person was drawn; older: as versions wrote it that noted no people."""
    if not older:
        note_people(run, [{"name": name, "keys": keys}], folder)
    cell = Cell(subject=name, word="man", prompt=0, seed=0, text="a man")
    run.store.put(f"{folder}/drawn/0a.tar", packed([(cell, b"png", None), (cell.prior, b"png", None)]))
    run.store.put(f"{folder}/metrics.json", b"{}")


def test_evaluations_that_show_somebody_are_listed_and_purged(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(settings)
    run.store.put("runs/r/finished.json", b"{}")
    evaluated(run, "runs/r/evaluation-1", "77", ["a" * 64])
    evaluated(run, "models-evaluated/ip-adapter-0/2", "78", [key_of(run, FIRST)])
    evaluated(run, "releases-evaluated/1/3", "77", [], older=True)
    evaluated(run, "releases-evaluated/1/4", "5", [key_of(run, LAST)])
    assert holdings(run, {key_of(run, FIRST)}).evaluations == ["models-evaluated/ip-adapter-0/2"]
    forget(settings, None, "celeba:77", "asked for")  # of whom no photo is in the catalog
    said = capsys.readouterr().out
    assert (
        "evaluations that show them (2)" in said and "runs/r/evaluation-1" in said and "releases-evaluated/1/3" in said
    )
    forget(settings, FIRST, None, "asked for")
    assert "evaluations that show them (1)" in capsys.readouterr().out
    (photo := Path(settings.workspace / "x.png")).write_bytes(b"of nobody in the catalog")
    evaluated(run, "runs/r/evaluation-5", "79", [hashlib.sha256(photo.read_bytes()).hexdigest()])
    forget(settings, str(photo), None, "asked for")
    assert "runs/r/evaluation-5" in capsys.readouterr().out
    purge(settings, confirmed=True)
    left = {key for root in EVALUATED for key in run.store.list(f"{root}/")}
    assert left == {"runs/r/finished.json"} | set(run.store.list("releases-evaluated/1/4/"))
    assert len(run.store.list("releases-evaluated/1/4/")) == 3


def test_the_same_identity_of_another_source_is_somebody_else(settings: Settings) -> None:
    run = Run(settings)
    evaluated(run, "runs/r/evaluation-1", "77", ["a" * 64])
    assert evaluations_showing(run, (), {"celeba:77"}) == ["runs/r/evaluation-1"]
    assert evaluations_showing(run, (), {"ffhq:77"}) == [] == evaluations_showing(run, {"b" * 64}, ())


def test_versions_are_the_first_and_the_last_that_have_it(settings: Settings) -> None:
    run = Run(settings)
    first, last, before = key_of(run, FIRST), key_of(run, LAST), run.catalog.version
    came = versions_holding(run.catalog, {last})
    assert came is not None and came[1] == before
    assert versions_holding(run.catalog, {first}) == (0, before)
    forget_photos(run.store, run.catalog, find_photo(run.catalog, FIRST), "asked for")
    assert versions_holding(run.catalog, {first}) == (0, before)
    assert versions_holding(run.catalog, {first, last}) == (0, before + 1)
    assert versions_holding(run.catalog, {"0" * 64}) is None


def test_a_person_is_forgotten_and_new_photos_of_theirs_are_refused(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, celeba = Run(settings), tmp_path / "celeba"
    forget(settings, None, "celeba:3", "asked in writing")
    said = capsys.readouterr().out
    assert "photos (2)" in said and "Forgotten from catalog version" in said and "--purge" in said
    forget(settings, None, "celeba:3", "asked in writing")
    assert "All of it was forgotten before" in capsys.readouterr().out
    for number, identity, origin in ((11, 3, "000001"), (12, 9, "000005")):
        name = f"{number:06d}.png"
        shutil.copy(celeba / "img_celeba" / f"{origin}.png", celeba / "img_celeba" / name)
        if number == 11:
            Image.effect_noise((32, 32), 60).convert("RGB").save(celeba / "img_celeba" / name)
        with (celeba / "Anno" / "identity_CelebA.txt").open("a") as file:
            file.write(f"{name} {identity}\n")
        with (celeba / "Anno" / "list_attr_celeba.txt").open("a") as file:
            file.write(f"{name} 1\n")
    assert [record.origin[-10:] for record in new_photos(settings)] == ["000011.png", "000012.png"]
    read(settings)
    rows = {row.origin[-10:]: row for row in run.catalog.photos("ingest")}
    # 11: a new photo of the person; 12: the bytes of a forgotten photo (000005 was person 3's), under another name.
    assert [(rows[name].reason, rows[name].detail) for name in ("000011.png", "000012.png")] == [
        ("forgotten", "asked in writing")
    ] * 2
    counts = run.catalog.counts()
    assert (counts.seen, counts.kept, counts.refused) == (12, 8, {"forgotten": 4})
    assert new_photos(settings) == []


def test_what_is_not_here_wants_ahead(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="No photo here shows celeba:77: add --ahead"):
        forget(settings, None, "celeba:77", "x")
    forget(settings, None, "celeba:77", "objected", ahead=True)
    forget(settings, None, "celeba:77", "objected")  # it is known by now
    assert "forgotten before" in capsys.readouterr().out


def test_purge_lists_first_and_deletes_when_told(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    run, root = Run(settings), Path(settings.store_root)
    row = next(row for row in run.catalog.photos("ingest") if row.origin == FIRST)
    purge(settings, confirmed=True)
    assert "No object holds a forgotten photo" in capsys.readouterr().out
    forget(settings, FIRST, None, "asked for")
    (root / "shards" / "ingest" / ".partial-0123").write_bytes(row.key.encode() + b".jpg")
    (settings.workspace / "report.html").write_text("pictures")
    (settings.workspace / "prefect").mkdir(exist_ok=True)
    training = ["runs/r/pictures/step-000100.png", "runs/r/tensorboard/pictures/events.out.tfevents.0000000000"]
    for key in (*training, "runs/r/tensorboard/events.out.tfevents.0000000000"):  # grids of people, and the curves
        run.store.put(key, b"x")
    needle = row.key.encode() + b".jpg"

    def held() -> int:
        return sum(needle in path.read_bytes() for path in root.rglob("*") if path.is_file())

    assert held() == 3
    purge(settings, confirmed=False)
    said = capsys.readouterr().out
    assert held() == 3 and "objects (2)" in said and "report.html" in said and "--yes" in said
    assert all(key in said for key in training)
    purge(settings, confirmed=True)
    assert held() == 0 and not (settings.workspace / "report.html").exists()
    assert run.store.list("runs/") == ["runs/r/tensorboard/events.out.tfevents.0000000000"]
    assert "Deleted: 4 objects" in capsys.readouterr().out
    assert len(run.training_shards()) == 2 and all(run.store.exists(row.object_key) for row in run.training_shards())


def test_another_run_in_the_workspace_is_waited_for_and_then_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_DYING_SECONDS", 0.2)
    monkeypatch.setattr(session, "_locked", lambda file: False)
    for action in (lambda: forget(settings, FIRST, None, "x"), lambda: purge(settings, True)):
        with pytest.raises(UserError, match="Another run is at work"):
            action()
    forget(settings, FIRST, None, "x", dry_run=True)  # only reads


@pytest.mark.parametrize(("photo", "person"), [(None, None), ("a", "b:c")])
def test_one_thing_at_a_time(settings: Settings, photo: str | None, person: str | None) -> None:
    with pytest.raises(UserError, match="one photo or one person"):
        forget(settings, photo, person, "x")


def test_an_empty_workspace_is_one_sentence(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no catalog"):
        forget(tiny_settings(world, tmp_path / "nothing"), "a.png", None, "x")


def test_a_job_on_a_cluster_is_not_worked_against(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Its driver may have been killed, so that the workspace's lock says nothing."""
    run, attempt = Run(settings), Attempt("moa-shard-0", 1)
    run.store.put(attempt.key("progress.json"), json.dumps({"time": time.time(), "parts": []}).encode())
    for work in (lambda: forget(settings, FIRST, None, "asked for"), lambda: purge(settings, True)):
        with pytest.raises(UserError, match="moa-shard-0-0001 may be writing"):
            work()
    job_records.write_outcome(run.store, attempt, {"result": {}, "left": []})
    forget(settings, FIRST, None, "asked for")
    purge(settings, True)
    assert "outcome.json" in capsys.readouterr().out
    assert run.store.list(job_records.ROOT) == []  # what it showed may show photos
