"""Photos in, a release out; again; and more photos: real Prefect, real Ray, tiny models of the production classes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefect.testing.utilities import prefect_test_harness
from safetensors.numpy import load_file

from flows.demo import conclude
from flows.evaluate import evaluate
from flows.generate import generate
from flows.publish import publish
from flows.retrain import Journey, retrain
from flows.run import Run
from flows.session import prepare_environment
from flows.train import train
from infra.errors import UserError
from infra.ray_session import ray_session
from infra.settings import Settings
from tests.tiny_world import tiny_settings, write_photos, write_world

# The tests of this file follow one another on one workspace.
pytestmark = [pytest.mark.xdist_group("journey"), pytest.mark.timeout(900)]  # two minutes on an idle machine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def settings(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(world, tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module", autouse=True)
def session(settings: Settings) -> Iterator[None]:
    prepare_environment()
    with prefect_test_harness(server_startup_timeout=120), ray_session(settings.ray):
        yield


@pytest.fixture(scope="module")
def first(settings: Settings) -> Journey:
    return retrain(settings)


def test_first_journey_ends_in_production(settings: Settings, first: Journey) -> None:
    run = Run(settings)
    assert (first.release, first.promoted, first.nothing_new) == (1, True, False)
    assert [one.stage for one in first.stages] == [
        "ingest", "caption", "segment", "shard", "train", "evaluate", "publish",
    ]  # fmt: skip
    assert [one.done for one in first.stages[:4]] == [4, 4, 4, 4]
    current = run.releases.current("production")
    assert current is not None and current.number == 1


def test_every_photo_is_accounted_for(settings: Settings, first: Journey) -> None:
    counts = Run(settings).catalog.counts(Run(settings).fingerprints)
    assert counts.seen == 22 == counts.kept + sum(counts.refused.values())
    assert counts.refused["duplicate"] == 1 and counts.refused["not_an_image"] == 1


def test_release_names_where_it_comes_from(settings: Settings, first: Journey) -> None:
    run = Run(settings)
    card = run.releases.manifest(run.releases.resolve("production"))["lineage"]
    assert card["run_id"] == first.run_id
    assert card["catalog_digest"] == run.catalog.content_digest(card["catalog_version"])
    assert card["stages"] == run.fingerprints
    assert card["start"] == "scratch"
    assert card["samples"] == sum(row.samples for row in run.training_shards())


def test_report_and_summary(settings: Settings, first: Journey, capsys: pytest.CaptureFixture[str]) -> None:
    conclude(settings, first, seconds=1.0)
    summary = json.loads((settings.workspace / "summary.json").read_text())
    assert summary["photos"]["in"] == 22
    assert summary["release"] == {"number": 1, "id": summary["release"]["id"], "promoted": True}
    page = (settings.workspace / "report.html").read_text()
    assert "duplicate" in page and "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert summary["pull"] in capsys.readouterr().out and summary["pull"].startswith("moa pull production DIR")


def test_pulled_release_draws(settings: Settings, world: Path, first: Journey, tmp_path: Path) -> None:
    folder = tmp_path / "pulled"
    Run(settings).releases.pull("production", folder)
    assert {"adapter.safetensors", "adapter_config.json", "README.md", "manifest.json"} <= {
        path.name for path in folder.iterdir()
    }
    photo = world / "celeba" / "img_celeba" / "000001.png"
    prompt = "a photo of a man holding roses"
    with_release = generate(settings, [photo], prompt, 7, tmp_path / "a.png")
    with_folder = generate(settings, [photo], prompt, 7, tmp_path / "b.png", str(folder))
    prior = generate(settings, [], prompt, 7, tmp_path / "c.png")
    pictures = [np.asarray(Image.open(path)) for path in (with_release, with_folder, prior)]
    assert pictures[0].shape == (32, 32, 3)
    assert (pictures[0] == pictures[1]).all()
    with pytest.raises(UserError, match="for 2 photos"):
        generate(settings, [photo, photo], prompt, 7, tmp_path / "d.png")


def test_number_of_workers_does_not_change_what_is_learned(settings: Settings, first: Journey, tmp_path: Path) -> None:
    run = Run(settings)
    for name in ("catalog", "shards"):
        shutil.copytree(Path(settings.store_root) / name, tmp_path / "store" / name)
    alone = settings.model_copy(
        update={"workspace": tmp_path, "train": settings.train.model_copy(update={"workers": 1})}
    )
    result = train(alone, from_scratch=True)
    assert result.facts["run_id"] == first.run_id
    adapters = [
        load_file(Path(one.store_root) / "runs" / first.run_id / "adapter.safetensors") for one in (settings, alone)
    ]
    assert run.store.exists(f"runs/{first.run_id}/finished.json")
    for name, weights in adapters[0].items():
        np.testing.assert_allclose(weights, adapters[1][name], atol=2e-3, err_msg=name)


def test_what_the_user_must_mend_is_one_sentence_at_once(
    settings: Settings, first: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would try the training again three times, and wrap the sentence into a traceback."""
    monkeypatch.setattr("flows.train.adapter_of", lambda run, start: {"adapter_config.json": b"{}"})
    changed = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": 1})})
    with pytest.raises(UserError, match="is not an adapter's configuration"):
        train(changed)


def test_again_with_nothing_new_ends_early(settings: Settings, first: Journey) -> None:
    version = Run(settings).catalog.version
    again = retrain(settings)
    assert again.nothing_new and again.release == 1
    assert [one.stage for one in again.stages] == ["ingest", "caption", "segment", "shard"]
    assert all(one.done == 0 for one in again.stages)
    assert Run(settings).catalog.version == version
    alone = [stage(settings) for stage in (train, evaluate, publish)]  # each by itself, as a command
    assert [one.done for one in alone[:2]] == [0, 0] and alone[2].facts["release"] == 1
    assert len(Run(settings).releases.all()) == 1


def test_more_photos_make_release_two_from_release_one(settings: Settings, world: Path, first: Journey) -> None:
    before = {row.shard: row.sha256 for row in Run(settings).shards("shard")}
    production = Run(settings).releases.resolve("production")
    write_photos(world / "ffhq", 5, first=30)
    more = retrain(settings)
    assert (more.release, more.nothing_new) == (2, False)
    # 7 new files, 6 a chunk: five photos and a duplicate, then the file that is no picture.
    assert [one.done for one in more.stages[:4]] == [1, 1, 1, 1]
    after = {row.shard: row.sha256 for row in Run(settings).shards("shard")}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    card = Run(settings).releases.manifest(Run(settings).releases.resolve("2"))["lineage"]
    assert card["start"] == f"release:{production.id}" and card["compared_with"] == 1
    assert any("production" in check["name"] for check in card["verdict"]["checks"])
