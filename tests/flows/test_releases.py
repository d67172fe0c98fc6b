"""What people do with releases, on registries of before and of today."""

import json
import shutil
from pathlib import Path

import pytest

from flows.releases import difference, export, find, listed, promote, roll_back, shown
from flows.run import Run
from infra.errors import UserError
from infra.registry import Releases
from infra.settings import Settings, load_settings
from moa_model import MoAAdapter
from preprocessing.catalog import KEPT, PhotoRow, ShardRow

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(params=["registry-of-before", "registry-1"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Three releases: 1, 2, which the gate refused, and 3, which is in production."""
    shutil.copytree(DATA / request.param, tmp_path / "workspace" / "store")
    return load_settings("demo", tmp_path / "workspace")


def test_all_are_listed_with_names_and_verdicts(settings: Settings) -> None:
    rows = listed(settings)
    today = any("staging" in row["names"] for row in rows)
    assert [(row["number"], row["gate"], row["names"]) for row in rows] == [
        (3, "passed", ["production"]),
        (2, "refused", ["staging"] if today else []),
        (1, "passed", []),
    ]
    assert all(row["model"] == "moa" and len(row["id"]) == 16 and row["bytes"] > 5000 for row in rows)
    assert {row["non_commercial"] for row in rows} == {today}
    assert rows[2]["start"] == "scratch" and rows[0]["start"] == f"release:{rows[2]['id']}"


def test_one_that_cannot_be_read_is_listed_with_its_problem(settings: Settings) -> None:
    store = Run(settings).store
    (key,) = [key for key in store.list("releases/") if "/0002/" in key] or ["releases/dbd603794485d6f6/manifest.json"]
    store.put(key, b"{}")
    rows = listed(settings)
    assert "cannot be used" in rows[1]["problem"] and "problem" not in rows[0] and "problem" not in rows[2]


def test_a_release_is_shown_with_its_moves(settings: Settings) -> None:
    found = shown(settings, "2")
    assert found["number"] == 2 and found["gate"] == "refused" and found["verdict"]["reasons"]
    assert {"adapter.safetensors": "weights", "README.md": "card"}.items() <= {
        file["name"]: file["role"] for file in found["files"]
    }.items()
    measured = found["metrics"]["identity"]
    assert measured["low"] <= measured["mean"] <= measured["high"] and "metrics" not in found["card"]
    moves = shown(settings, "moa@production")["moves"]
    assert [move["move"] for move in moves] == list(range(1, len(moves) + 1)) and moves[-1]["release"] == 3
    assert json.dumps(found)


def test_two_are_held_beside_each_other(settings: Settings) -> None:
    found = difference(settings, "1", "moa@3")
    assert (found["old"], found["new"], found["same_evaluation"], found["photos"]) == ("moa@1", "moa@3", True, None)
    changed = {one["setting"]: (one["old"], one["new"]) for one in found["settings"]}
    assert changed["train.seed"] == (0, 1) and changed["start"][0] == "scratch" and len(changed) == 2
    row = next(row for row in found["metrics"] if row["metric"] == "identity")
    assert row["old"]["mean"] != row["new"]["mean"]
    assert "adapter.safetensors" in found["files"] and "adapter_config.json" not in found["files"]
    assert difference(settings, "1", "1")["files"] == difference(settings, "1", "1")["settings"] == []


def test_photos_that_came_and_went_are_counted(settings: Settings, tmp_path: Path) -> None:
    run = Run(settings)
    stages = {"shard": "f"}

    def commit(shard: str, *keys: str) -> int:
        rows = [PhotoRow("ingest", shard, key, "folder", f"{key}.png", KEPT, fingerprint="f") for key in keys]
        return run.catalog.commit([ShardRow("shard", shard, "f", f"x/{shard}", "0" * 64, len(keys))], rows)

    first = commit("a", "k1", "k2")
    second = commit("b", "k3")
    cards = [{"catalog_version": version, "stages": stages} for version in (first, second)]
    numbers = [run.releases.publish({"adapter.bin": b"%d" % i}, card).number for i, card in enumerate(cards)]
    found = difference(settings, str(numbers[0]), str(numbers[1]))["photos"]
    assert found["added"] == {"photos": 1, "examples": ["folder:k3.png"]}
    assert (found["removed"]["photos"], found["both"]) == (0, 2)
    back = difference(settings, str(numbers[1]), str(numbers[0]))["photos"]
    assert (back["added"]["photos"], back["removed"]["photos"]) == (0, 1)
    later = run.releases.publish({"adapter.bin": b"x"}, {"catalog_version": second + 9, "stages": stages})
    assert difference(settings, "1", str(later.number))["photos"] is None  # of another catalog


def test_the_gates_refusal_wants_a_reason(settings: Settings) -> None:
    before = Run(settings).releases.history("production")
    for blank in ("", " \n"):
        with pytest.raises(UserError, match="does not let release 2 .*--override"):
            promote(settings, "2", "production", "looks better", blank)
    assert Run(settings).releases.history("production") == before
    move = promote(settings, "2", "production", "looks better", "the measure\n is wrong ")
    assert (move.release.number, move.why, move.override) == (2, "looks better", "the measure is wrong")
    row = next(row for row in listed(settings) if row["number"] == 2)
    assert row["gate"] == "refused" and row["overrides"]["production"] == "the measure is wrong"
    assert shown(settings, "production")["moves"][-1]["override"] == "the measure is wrong"
    move = promote(settings, "1", "staging", "to look at", "not needed")
    assert (move.release.number, move.why, move.override) == (1, "to look at", "")
    release = Run(settings).releases.publish({"adapter.bin": b"x"}, {})
    with pytest.raises(UserError, match="never held against it"):
        promote(settings, str(release.number), "production", "new", "")


def test_a_reason_is_given_once(settings: Settings) -> None:
    """Against the gate it is --override's; what the gate said stands in the history by itself."""
    move = promote(settings, "2", "production", "", "the measure is wrong")
    verdict = shown(settings, "2")["verdict"]
    assert move.why == f"against the gate: {verdict['reasons'][0]}" and move.override == "the measure is wrong"
    assert promote(settings, "1", "staging", "", "it passed").why == "it passed", "nobody's words are lost"
    with pytest.raises(UserError, match="--why"):
        promote(settings, "3", "staging", "", "")


def test_a_name_goes_back(settings: Settings) -> None:
    promote(settings, "1", "production", "an old one", "")
    assert roll_back(settings, "", "production", "no").release.number == 3
    with pytest.raises(UserError, match="no earlier"):
        roll_back(settings, "", "nothing", "no")


def test_an_export_is_a_model_repository(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    assert export(settings, "2", folder).number == 2
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "adapter.safetensors", "adapter_config.json", ".gitattributes"} <= names
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\nlicense: other\n") and "do not promote" in readme
    releases, release = find(settings, "2")
    today = releases.manifest(release).folder == ""
    assert ("manifest.json" in names) == today  # one of before would not fit its new README
    (folder / "README.md").write_text("mine")  # its own files, not the cache's
    assert MoAAdapter.from_pretrained(folder).config.text_dim == 2
    assert Releases(releases.store).read(release, "README.md") != b"mine"
    for place in (folder, folder / "README.md"):
        with pytest.raises(UserError, match="not an empty folder"):
            export(settings, "2", place)
    assert export(settings, "1", tmp_path / "other").number == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "other", "workspace"]


def test_an_old_workspace_goes_on(tmp_path: Path) -> None:
    """A training after the update starts from the release in production and becomes the next one."""
    from flows.train import adapter_of, start_of

    shutil.copytree(DATA / "registry-of-before", tmp_path / "workspace" / "store")
    run = Run(load_settings("demo", tmp_path / "workspace"))
    start, says = start_of(run, from_scratch=False)
    assert start == "release:d0d6a1a959c7eadc" and says == "warm from release 3"
    files = adapter_of(run, start)
    assert files is not None and files.keys() == {"adapter.safetensors", "adapter_config.json"}
    four = run.releases.publish(files, {"run_id": "next", "start": start, "verdict": {"promote": True}})
    run.releases.promote("production", four.id, "passed the gate")
    assert four.number == 4 and run.releases.find("next") == four == Run(run.settings).releases.resolve("production")
