"""Photos in, killed twice, a release out; again; one is taken back and more come, somebody of the evaluation among
them.

Real Prefect, real Ray, tiny models of the production classes."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefect.testing.utilities import prefect_test_harness
from safetensors.numpy import load_file

from evaluation.comparison import Comparison
from flows import ingest as ingest_stage
from flows import model_stages
from flows.caption import caption
from flows.evaluate import evaluate
from flows.forget import forget, purge
from flows.generate import generate
from flows.holdings import holdings
from flows.ingest import ingest
from flows.near_duplicates import duplicates
from flows.publish import publish
from flows.releases import listed, promote, shown
from flows.retrain import retrain
from flows.run import Run
from flows.segment import segment
from flows.session import prepare_environment
from flows.shard import shard
from flows.train import finished_training, train
from flows.training_history import read_attempts
from infra.errors import UserError
from infra.manifest import SIGNATURE
from infra.pulling import pull_from
from infra.ray_session import ray_session
from infra.release_signatures import make_keys
from infra.settings import Settings
from preprocessing.catalog import load_shard
from preprocessing.forgetting import find_photo
from preprocessing.shards import read_tar
from tests.tiny_world import add_photo, tiny_changes, tiny_settings, write_photos, write_world
from tests.without_ray import map_shards

# The tests of this file follow one another on one workspace.
pytestmark = [pytest.mark.xdist_group("journey"), pytest.mark.timeout(900)]  # two minutes on an idle machine

REPOSITORY = Path(__file__).parents[2]
IN_FFHQ = "images1024x1024/00000"
SEARCHED = {"near_duplicates.search": "true", "near_duplicates.cosine": "0.9", "signatures.workers": "1"}
# Long enough to be killed on the way.
TRAINED = {
    "train.steps": "16",
    "train.pictures_every": "8",
    "train.pictures_people": "2",
    "train.pictures_prompts": "1",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photos to learn from, one of them a second time, mirrored and in other bytes."""
    root = write_world(tmp_path_factory.mktemp("world"))
    photo = Image.open(root / "ffhq" / IN_FFHQ / "00002.png")
    add_photo(root / "ffhq", 60, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return root


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The settings with which all releases of this journey are signed, and read only if they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOA_SIGNING_PASSPHRASE", "correct horse")
        key = tmp_path_factory.mktemp("keys") / "team.pem"
        public = make_keys(key)
        yield {"publish.signing_key": str(key), "publish.verify_key": str(public)}


@pytest.fixture(scope="module")
def settings(world: Path, signed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(world, tmp_path_factory.mktemp("workspace"), SEARCHED | TRAINED | signed)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another machine's folder."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def first(settings: Settings, world: Path, elsewhere: Path, signed: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`moa retrain` killed with everything it started, first while it captions, then while it trains; then somebody
    else, in another place, types the same with the store's address, and it ends well."""
    changes = {**tiny_changes(world), **SEARCHED, **TRAINED, **signed, "storage.root": settings.store_root}
    command = [sys.executable, "-m", "flows.cli", "retrain"]
    command += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    run, attempts = Run(settings), Path(settings.store_root) / "runs"
    killed = [*command, "--workspace", str(elsewhere)]
    _kill_when(lambda: bool(run.catalog.shards("caption")), killed)
    _kill_when(lambda: any(attempts.glob("*/checkpoints/step-00000004/complete.json")), killed)
    return subprocess.run(
        [*command, "--workspace", str(settings.workspace)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=400, env=os.environ | {"LOGNAME": "boris"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def session(settings: Settings, first: object) -> Iterator[None]:
    """Prefect and Ray in this process, once the command has ended."""
    prepare_environment()
    with prefect_test_harness(server_startup_timeout=120), ray_session(settings.ray):
        yield


def test_a_run_that_was_killed_twice_ends_in_production(
    settings: Settings, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 0, first.stderr
    assert "continued after step" in first.stderr
    run = Run(settings)
    current = run.releases.current("production")
    assert current is not None and current.number == 1 and len(run.releases.all()) == 1
    for stage in ("ingest", "duplicates", "caption", "segment", "shard"):
        assert len(run.shards(stage)) == 4
    photos = Counter((row.source, row.origin) for row in run.catalog.photos("ingest"))
    assert len(photos) == 23 and set(photos.values()) == {1}


def test_what_was_stopped_by_somebody_elsewhere_lost_nothing_and_the_report_says_so(
    settings: Settings, first: subprocess.CompletedProcess[str], elsewhere: Path
) -> None:
    """Both attempts, by whom, where and from which step; every sample's turns, counted."""
    run = Run(settings)
    run_id = _trained(run)
    killed, ended = read_attempts(run.store, run_id)
    assert (killed.user, killed.workspace, killed.continued, killed.how) == ("anna", str(elsewhere), 0, "")
    assert (ended.user, ended.workspace, ended.how) == ("boris", str(settings.workspace), "finished")
    assert 4 <= ended.continued < 16 and [start.step for start in ended.starts] == [ended.continued]
    finished = finished_training(run, run_id)
    account, samples = finished["account"], sum(row.samples for row in run.training_shards())
    whole, begun = divmod(settings.train.steps * settings.train.batch_size, samples)
    assert (account["whole_epochs"], account["begun"], account["samples"]) == (whole, begun, samples)
    assert (account["proven"], account["again"], account["missing"]) == (True, 0, 0)
    assert [start["step"] for start in finished["starts"]] == [0, ended.continued]
    text = " ".join(html.unescape(re.sub("<[^>]*>", " ", (settings.workspace / "report.html").read_text())).split())
    for said in (
        "Nothing was lost",
        f"of {samples} samples",
        f"anna {killed.host} {elsewhere}",
        "without a word: killed, or its machine was lost",
        f"boris {ended.host} {settings.workspace}",
        "step 8", "step 16", "gradient norm", "the experts' share", "shards passed over none",
    ):  # fmt: skip
        assert said in text, said
    assert text.count(f"{killed.time[:10]}") >= 2
    assert "train: Nothing was lost: " in first.stderr and "train: attempt 1, by anna" in first.stderr
    released = run.releases.resolve("1")
    readme = run.releases.read(released, "README.md").decode()
    assert "| shards passed over | none |" in readme and "anna" not in readme
    assert run.releases.card(released)["course"]["attempts"] == 2
    pictures = run.store.list(f"runs/{run_id}/pictures/")
    assert [key.rpartition("/")[2] for key in pictures] == ["step-000008.png", "step-000016.png"]


def test_every_photo_is_accounted_for(settings: Settings, first: object) -> None:
    counts = Run(settings).catalog.counts(Run(settings).fingerprints)
    assert counts.seen == 23 == counts.kept + sum(counts.refused.values())
    assert {name: counts.refused[name] for name in ("duplicate", "near_duplicate", "not_an_image")} == {
        "duplicate": 1, "near_duplicate": 1, "not_an_image": 1,
    }  # fmt: skip


def test_a_copy_is_found_and_not_trained_on(settings: Settings, first: object) -> None:
    run = Run(settings)
    (row,) = run.catalog.photos("duplicates")
    assert row.origin == f"{IN_FFHQ}/00060.png" and "00002.png (" in row.detail
    assert row.origin not in _trained_on(run) and len(_trained_on(run)) > 1
    assert "duplicates" in run.releases.card(run.releases.resolve("1"))["stages"]
    assert len(run.store.list(f"runs/{_trained(run)}/split-")) == 1  # nobody of the evaluation was there


def test_neither_kills_nor_who_does_the_work_matter(
    world: Path, settings: Settings, first: object, session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, with two actors on Ray; undisturbed, with one worker that takes the shards in reverse."""
    alone = tiny_settings(world, tmp_path, SEARCHED)
    for module in (ingest_stage, model_stages):
        monkeypatch.setattr(module, "map_shards", map_shards)
    for stage in (ingest, duplicates, caption, segment, shard):
        stage.fn(alone)
    assert Run(alone).catalog.content_digest() == Run(settings).catalog.content_digest()


def test_release_names_where_it_comes_from(settings: Settings, first: object) -> None:
    run = Run(settings)
    card = run.releases.card(run.releases.resolve("production"))
    assert run.store.exists(f"runs/{card['run_id']}/finished.json")
    assert card["catalog_digest"] == run.catalog.content_digest(card["catalog_version"])
    assert card["stages"] == run.fingerprints
    assert card["start"] == "scratch"
    assert card["samples"] == sum(row.samples for row in run.training_shards())


def test_report_and_summary(settings: Settings, first: subprocess.CompletedProcess[str]) -> None:
    summary = json.loads((settings.workspace / "summary.json").read_text())
    assert summary["photos"]["in"] == 23
    assert summary["release"] == {"number": 1, "id": summary["release"]["id"], "promoted": True}
    page = (settings.workspace / "report.html").read_text()
    assert "duplicate" in page and "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert summary["pull"] in first.stdout and summary["pull"].startswith("moa pull production DIR")


def test_pulled_release_draws(settings: Settings, world: Path, first: object, tmp_path: Path) -> None:
    folder = tmp_path / "pulled"
    store = Run(settings).store
    pull_from(store, "production", "", folder, key=settings.publish.verify_key)
    with pytest.raises(UserError, match="is not signed with"):
        pull_from(store, "production", "", tmp_path / "refused", key=make_keys(tmp_path / "somebody.pem"))
    assert not (tmp_path / "refused").exists()
    names = {"adapter.safetensors", "adapter_config.json", "README.md", "metrics.json", "lineage.json"}
    assert {path.name for path in folder.iterdir()} == {*names, "manifest.json", SIGNATURE}
    readme = (folder / "README.md").read_text()
    assert "| ffhq | CC0 |" in readme and "## The gate: promote" in readme
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


def test_number_of_workers_does_not_change_what_is_learned(
    settings: Settings, first: object, session: None, tmp_path: Path
) -> None:
    run = Run(settings)
    for name in ("catalog", "shards"):
        shutil.copytree(Path(settings.store_root) / name, tmp_path / "store" / name)
    alone = settings.model_copy(
        update={"workspace": tmp_path, "train": settings.train.model_copy(update={"workers": 1})}
    )
    result = train(alone, from_scratch=True)
    assert result.facts["run_id"] == _trained(run)
    adapters = [
        load_file(Path(one.store_root) / "runs" / _trained(run) / "adapter.safetensors") for one in (settings, alone)
    ]
    for name, weights in adapters[0].items():
        np.testing.assert_allclose(weights, adapters[1][name], atol=2e-3, err_msg=name)


def test_what_the_user_must_mend_is_one_sentence_at_once(
    settings: Settings, first: object, session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would try the training again three times, and wrap the sentence into a traceback."""
    monkeypatch.setattr("flows.train.adapter_of", lambda run, start: {"adapter_config.json": b"{}"})
    changed = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": 1, "workers": 1})})
    with pytest.raises(UserError, match="is not an adapter's configuration"):
        train(changed)


def test_again_with_nothing_new_ends_early(settings: Settings, first: object, session: None) -> None:
    version = Run(settings).catalog.version
    again = retrain(settings)
    assert again.nothing_new and again.release == 1
    assert [one.stage for one in again.stages] == ["ingest", "duplicates", "caption", "segment", "shard"]
    assert all(one.done == 0 for one in again.stages)
    assert Run(settings).catalog.version == version
    alone = [stage(settings) for stage in (train, evaluate, publish)]  # each by itself, as a command
    assert [one.done for one in alone[:2]] == [0, 0] and alone[2].facts["release"] == 1
    assert len(Run(settings).releases.all()) == 1


def test_one_photo_is_taken_back_and_more_make_release_two_from_release_one(
    settings: Settings, world: Path, first: object, session: None
) -> None:
    """Among those that come is somebody on whom releases are evaluated: that stops the run, once, at the training."""
    run = Run(settings)
    production = run.releases.resolve("production")
    origin = min(_trained_on(run))
    (row,) = find_photo(run.catalog, origin).photos
    samples = sum(shard.samples for shard in run.training_shards())
    forget(settings, origin, None, "asked for")
    purge(settings, confirmed=True)
    before = {row.shard: row.sha256 for row in run.shards("shard")}
    assert sum(shard.samples for shard in run.training_shards()) == samples - 1
    write_photos(world / "ffhq", 4, first=30)
    evaluated_on = Image.open(world / "celeba" / "img_celeba" / "000001.png")
    somebody = add_photo(world / "ffhq", 70, evaluated_on.resize((128, 128), Image.Resampling.BICUBIC))

    with pytest.raises(UserError, match=r"00070.png \(looks like 1's .*000001.png\): moa forget"):
        retrain(settings)
    forget(settings, somebody, None, "evaluated on")
    # The number of workers is no part of what is trained.
    more = retrain(settings.model_copy(update={"train": settings.train.model_copy(update={"workers": 1})}))

    assert (more.release, more.nothing_new) == (2, False)
    # 7 new files, 6 a chunk: the first held five photos and a duplicate, the second a single one or none. Of what was
    # forgotten nothing is made again, nor of what the stopped run had made.
    assert [one.done for one in more.stages[:5]] == [0, 0, 0, 0, 0]
    after = {row.shard: row.sha256 for row in run.shards("shard")}
    assert before.items() <= after.items() and len(after) > len(before)
    card = run.releases.card(run.releases.resolve("2"))
    assert card["start"] == f"release:{production.id}" and card["compared_with"] == 1
    assert any("production" in check["name"] for check in card["verdict"]["checks"])
    assert not {origin, somebody} & _trained_on(run)
    held = holdings(run, {row.key}).releases
    assert [(one.release.number, one.photos, one.through and one.through.number) for one in held] == [
        (1, 1, None),
        (2, 0, 1),  # it went on from release 1
    ]
    needles = (f"{row.key}.jpg".encode(), f"{row.key}.embed.npy".encode())
    files = [path for path in Path(settings.store_root).rglob("*") if path.is_file()]
    assert not any(needle in path.read_bytes() for path in files for needle in needles)


def test_a_bad_candidate_is_kept_out_in_one_sentence_and_production_stays(
    settings: Settings, first: object, session: None
) -> None:
    """Trained at a rate at which nothing is learned but noise: its pictures are further from the prior's."""
    run = Run(settings)
    before, releases = run.releases.history("production"), len(run.releases.all())
    none = settings.publish.max_regression.model_copy(update={"prior_fidelity": 0.0})
    strict = settings.model_copy(
        update={
            "train": settings.train.model_copy(update={"learning_rate": 0.3, "workers": 1, "clip_norm": 1e3}),
            "publish": settings.publish.model_copy(update={"max_regression": none}),
        }
    )
    bad = retrain(strict)

    assert not bad.promoted and len(run.releases.all()) == releases + 1 == bad.release
    assert run.releases.history("production") == before, "and nobody pulls anything else than before"
    card = run.releases.card(run.releases.resolve(str(bad.release)))
    (reason,) = card["verdict"]["reasons"]
    assert reason.startswith("The distance to the prior's pictures is ") and ": worse (+" in reason
    assert bad.stages[-1].note == f"release {bad.release}: kept, production stays where it was: {reason}"
    compared = Comparison.model_validate(card["comparison"]).of("prior_fidelity")
    assert compared is not None and compared.is_worse and card["compared_with"] == before[-1].release.number
    # The table of production's pictures was there: nothing is drawn or measured again to compare with it.
    assert not run.store.list("releases-evaluated/")
    # Somebody who knows better has to say why.
    with pytest.raises(UserError, match=f"does not let release {bad.release} of moa through .The distance"):
        promote(strict, str(bad.release), "production", "", "")
    assert run.releases.history("production") == before
    promote(strict, str(bad.release), "production", "", "a test")
    (move,) = run.releases.history("production")[len(before) :]
    assert (move.release.number, move.override, move.why) == (bad.release, "a test", f"against the gate: {reason}")
    row = next(row for row in listed(strict) if row["number"] == bad.release)
    assert (row["gate"], row["overrides"]) == ("refused", {"production": "a test"})
    assert shown(strict, "production")["moves"][-1]["override"] == "a test"


def _kill_when(ready: Callable[[], bool], command: list[str]) -> None:
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"LOGNAME": "anna"},
    )  # fmt: skip
    deadline = time.monotonic() + 400
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _trained(run: Run) -> str:
    """The id of the training of release 1."""
    return str(run.releases.card(run.releases.resolve("1"))["run_id"])


def _trained_on(run: Run) -> set[str]:
    tars = [load_shard(run.store, row) for row in run.training_shards()]
    return {sample.json()["origin"] for tar in tars for sample in read_tar(tar)}
