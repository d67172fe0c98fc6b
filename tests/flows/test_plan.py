"""`moa plan` and `moa catalog` say what is so, and leave everything as it was."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.ingest import new_photos
from flows.model_stages import written_down
from flows.plan import plan_run
from flows.run import COLUMNS, Run
from flows.workers import IngestWorker
from infra.errors import UserError
from infra.settings import Settings, load_settings
from preprocessing.catalog import ShardRow
from preprocessing.recipes import Speed

MODELS = ("base", "clip", "captioner", "segmenter", "identity")


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, str]:
    model, photos = tmp_path / "model", tmp_path / "photos"
    model.mkdir()
    photos.mkdir()
    for name in ("config.json", "model_index.json"):
        (model / name).write_text("{}")
    for i in range(5):
        Image.effect_noise((48 + i, 48 + i), 90).save(photos / f"{i}.png")
    (photos / "9.png").write_bytes(b"no picture")
    folders = {f"models.{name}.location": str(model) for name in MODELS}
    return {**folders, "ingest.source": f"folder:{photos}", "ingest.photos_per_shard": "2"}


@pytest.fixture
def settings(changes: dict[str, str], tmp_path: Path) -> Settings:
    return load_settings("demo", tmp_path / "workspace", changes)


def do_ingest(settings: Settings) -> Run:
    run, records = Run(settings), new_photos(settings)
    worker = IngestWorker(run.store, settings.ingest, run.fingerprints["ingest"], frozenset())
    with written_down(run, "ingest", 1):
        for i in range(0, len(records), 2):
            done = worker({"index": i, "records": records[i : i + 2]})
            run.catalog.commit([done["shard"]] if done["shard"] else [], done["photos"])
    return run


def do_caption(run: Run) -> None:
    with written_down(run, "caption", 1):
        for row in run.pending("caption"):
            run.catalog.commit([ShardRow("caption", row.shard, run.fingerprints["caption"], "x", "0" * 64, 2)])


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_plan_follows_what_is_done(settings: Settings, tmp_path: Path) -> None:
    plan = plan_run(settings)
    assert not settings.workspace.exists()  # nothing was written, not even a folder
    assert plan["new_photos"] == 6
    assert [(one["stage"], one["done"], one["pending"]) for one in plan["stages"]] == [
        (stage, 0, 3) for stage in ("ingest", "caption", "segment", *COLUMNS, "shard")
    ]
    assert plan["seconds"] is None and "never ran here" in plan["says"]

    run = do_ingest(settings)
    do_caption(run)
    Speed(11, 22, 30.0, 10.0, 2).save(run.store, "segment")
    Speed(11, 22, 20.0, 20.0, 2).save(run.store, "shard")
    before = tree(tmp_path)
    plan = plan_run(settings)
    assert tree(tmp_path) == before
    assert [(one["stage"], one["done"], one["pending"]) for one in plan["stages"]] == [
        ("ingest", 3, 0),
        ("caption", 3, 0),
        ("segment", 0, 3),
        *((column, 0, 3) for column in COLUMNS),
        ("shard", 0, 3),
    ]
    assert plan["stages"][2]["why"] == ["3 shards not done yet"]
    assert plan["stages"][2]["seconds"] == 14.0 and plan["seconds"] == 34.0


def test_a_changed_setting_is_named_through_all_that_depends_on_it(settings: Settings) -> None:
    run = do_ingest(settings)
    do_caption(run)
    with written_down(run, "shard", 1):
        for row in run.shards("ingest")[:2]:
            run.catalog.commit([ShardRow("shard", row.shard, run.fingerprints["shard"], "x", "0" * 64, 2)])
    beams = settings.model_copy(update={"caption": settings.caption.model_copy(update={"num_beams": 5})})
    stages = {one["stage"]: one for one in plan_run(beams)["stages"]}
    said = f"because caption.num_beams {settings.caption.num_beams} -> 5"
    assert stages["caption"]["why"] == [f"3 shards anew {said}"]
    assert stages["shard"]["why"] == ["1 shard not done yet", f"2 shards anew {said}"]
    assert stages["segment"]["why"] == ["3 shards not done yet"]
    Path(settings.models.captioner.location, "config.json").write_text("{ }")
    assert {one["stage"]: one for one in plan_run(settings)["stages"]}["caption"]["why"] == [
        "3 shards anew because models.captioner changed"
    ]
    larger = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"pixels": 96})})
    with pytest.raises(UserError, match=r"other ingest settings \(ingest.pixels 64 -> 96\)"):
        plan_run(larger)


def test_new_photos_are_in_the_plan(settings: Settings) -> None:
    do_caption(do_ingest(settings))
    folder = Path(settings.ingest.source.partition(":")[2])
    for i in (10, 11, 12):
        Image.effect_noise((60 + i, 60 + i), 90).save(folder / f"{i}.png")
    stages = plan_run(settings)["stages"]
    assert (stages[0]["pending"], stages[0]["why"]) == (2, ["3 new photos"])
    assert (stages[1]["pending"], stages[1]["why"]) == (2, ["about 2 shards of new photos"])
    for stage, seconds in {"ingest": 1.0, "caption": 8.0, "segment": 5.0, "shard": 3.0}.items():
        Speed(2, 4, seconds, seconds, 1).save(Run(settings).store, stage)
    assert plan_run(settings)["seconds"] == 1.0 + 8.0 + 3.0  # caption and segment run side by side


def test_photos_that_are_yet_to_be_drawn_are_new(settings: Settings) -> None:
    paper = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"source": "paperfolk"})})
    assert plan_run(paper)["new_photos"] == settings.paperfolk.photos


def test_the_commands(settings: Settings, changes: dict[str, str]) -> None:
    def moa(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, *options])
        if result.exception:
            raise result.exception
        return result.stdout

    options = ["--workspace", str(settings.workspace)]
    options += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    with pytest.raises(UserError, match="no catalog here yet"):
        moa("catalog")
    do_ingest(settings)
    assert "not_an_image" in moa("catalog") and "ingest" in moa("catalog", "--version", "0")
    (counted,) = json.loads(moa("catalog", "--json"))["photos"]
    assert (counted["seen"], counted["kept"], counted["refused"]) == (6, 5, 1)
    assert [row["version"] for row in json.loads(moa("catalog", "versions", "--json"))] == [2, 1, 0]
    assert "rows added" in moa("catalog", "versions")
    assert "4.png" in moa("catalog", "diff", "0", "2")
    assert "refused by ingest: not_an_image" in moa("catalog", "why", "9.png")
    sql = "SELECT reason, count(*) AS photos FROM photos WHERE fate = 'refused' GROUP BY reason"
    assert json.loads(moa("catalog", "sql", sql, "--json")) == [{"reason": "not_an_image", "photos": 1}]
    assert "1 row" in moa("catalog", "sql", sql)
    with pytest.raises(UserError, match="mend the SQL"):
        moa("catalog", "sql", "SELEC")
    assert "segment" in moa("plan") and json.loads(moa("plan", "--json"))["new_photos"] == 0
