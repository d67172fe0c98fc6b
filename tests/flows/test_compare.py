"""Two evaluated models side by side, on scores whose differences are known."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from evaluation.protocol import Cell
from evaluation.scores import Scores
from flows import cli
from flows.compare import compare_models
from flows.run import Run
from infra.errors import UserError
from infra.settings import Settings, load_settings

CELLS = [
    Cell(subject=name, word="man", prompt=0, seed=seed, text="a man", group="there")
    for name in "abcdefgh"
    for seed in (1, 2)
]
NOISE = np.random.default_rng(0).normal(0, 0.2, len(CELLS))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Release 1, the better release 2, and the prior under one protocol; release 3 under another; 4 under none."""
    settings = load_settings("demo", tmp_path / "workspace")
    run = Run(settings)
    for number, protocol in ((1, "p"), (2, "p"), (3, "q"), (4, "")):
        card = {"run_id": f"t{number}", "evaluation": protocol}
        run.releases.publish({"adapter.bin": b"%d" % number}, card)
        if protocol:
            gain = 0.01 * number * np.ones(len(CELLS))
            _write(run, f"runs/t{number}/evaluation-{protocol}", {"identity": NOISE + gain, "router_iou": NOISE})
    _write(run, "models-evaluated/prior/p", {"identity": NOISE})
    return settings


def _write(run: Run, folder: str, values: Mapping[str, np.ndarray]) -> None:
    scores = Scores(CELLS, {name: column.tolist() for name, column in values.items()})
    run.store.put(f"{folder}/scores.parquet", scores.to_parquet())
    run.store.put(f"{folder}/metrics.json", b"{}")


def test_the_difference_is_of_the_same_pictures(settings: Settings) -> None:
    """The noise of a fifth is in both: a hundredth is seen all the same."""
    found = compare_models(settings, "1", "release:2")
    assert (found["first"], found["second"], found["protocol"], found["pictures"]) == ("moa@1", "moa@2", "p", 16)
    identity, router = found["measures"]
    assert identity["measure"] == "identity" and identity["winner"] == "moa@2"
    assert [identity[name] for name in ("difference", "low", "high")] == pytest.approx([0.01] * 3)
    assert identity["second"] - identity["first"] == pytest.approx(0.01)
    assert (router["measure"], router["difference"], router["winner"]) == ("router_iou", 0, "")
    back = compare_models(settings, "moa@2", "moa@1")["measures"][0]
    assert back["difference"] == pytest.approx(-0.01) and back["winner"] == "moa@2"


def test_what_only_one_of_them_has_is_named(settings: Settings) -> None:
    found = compare_models(settings, "prior", "1")
    assert [row["measure"] for row in found["measures"]] == ["identity"] and found["absent"] == {"router_iou": "moa@1"}


def test_who_was_not_evaluated_alike_is_told_how(settings: Settings) -> None:
    for one, other, says in (
        ("1", "4", r"moa@4 was not evaluated yet: run moa evaluate --model release:moa@4\.$"),
        ("4", "4", r"^moa@4 was not evaluated yet"),
        (
            "2",
            "3",
            "different protocols: run moa evaluate --model release:moa@2 and moa eval.* release:moa@3",
        ),
        ("1", "9", "no release 9"),
        ("ip-adapter:/nowhere.safetensors", "1", "There is no IP-Adapter"),
    ):
        with pytest.raises(UserError, match=says):
            compare_models(settings, one, other)


def test_of_several_protocols_the_latest_releases_counts(settings: Settings) -> None:
    run = Run(settings)
    for number in (1, 2):
        _write(run, f"runs/t{number}/evaluation-q", {"identity": NOISE})
        _write(run, f"runs/t{number}/evaluation-z", {"identity": NOISE})
    assert compare_models(settings, "1", "2")["protocol"] == "q"  # release 3's: 4 has none


def test_the_command(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def moa(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moa", "compare", *arguments, "--workspace", str(settings.workspace)])
        code = cli._run()
        return code, *capsys.readouterr()

    code, out, err = moa("prior", "2")
    assert code == 0, err
    assert all(said in out for said in ("moa@2 beside prior, 16 pictures each", "+0.020 (", "identity ↑"))
    assert "Measured of moa@2 alone: router_iou." in out
    code, out, _ = moa("prior", "2", "--json")
    assert code == 0 and json.loads(out)["measures"][0]["winner"] == "moa@2"
    code, out, err = moa("1", "4")
    assert (code, out) == (2, "") and err.startswith("moa: moa@4 was not evaluated") and err.count("\n") == 1
