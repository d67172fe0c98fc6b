"""`moa train --dry-run` says what a training takes, for any settings, and touches nothing."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.training_plan import Assumptions, Counted, count, describe, flops_per_image, plan_training, show_plan
from infra.errors import UserError
from infra.settings import Settings, load_settings

PARTS = ["model", "memory per GPU", "work", "data", "checkpoint", "training"]
ORCHESTRATION = {"ray", "prefect"}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No network, no cache of models, and an empty folder to stand in, which is empty at the end."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a dry run asked the network")

    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.chdir(folder)
        yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def counted(folder: Path) -> Counted:
    return count(_settings("demo"))


@pytest.fixture(scope="module")
def demo(counted: Counted) -> dict[str, Any]:
    return describe(_settings("demo"), counted)


@pytest.fixture(scope="module")
def sd15(folder: Path) -> dict[str, Any]:
    """As the command says it to programs."""
    before = set(ORCHESTRATION & sys.modules.keys())
    words = ["train", "--preset", "sd15", "--dry-run", "--json", "--workspace", str(folder / "work")]
    answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert set(ORCHESTRATION & sys.modules.keys()) == before and list(folder.iterdir()) == []
    return json.loads(answer.stdout)


def _settings(preset: str, **changes: str) -> Settings:
    return load_settings(preset, Path("work"), {name.replace("__", "."): v for name, v in changes.items()})


def _value(plan: dict[str, Any], part: str, what: str) -> float:
    (found,) = (one for one in plan["figures"] if (one["part"], one["what"]) == (part, what))
    return found["value"]


def test_the_paper_preset_on_four_gpus(sd15: dict[str, Any]) -> None:
    plan = sd15
    assert list(dict.fromkeys(one["part"] for one in plan["figures"])) == PARTS
    assert all(one["shown"] and one["arithmetic"] for one in plan["figures"])
    assert _value(plan, "model", "base, frozen") == 859_520_964
    sample = _value(plan, "work", "a sample")
    assert _value(plan, "training", "work") == 40_000 * 128 * sample
    seconds = _value(plan, "training", "time")
    assert seconds == pytest.approx(40_000 * 128 * sample / (4 * 989e12 * 0.31))
    assert _value(plan, "training", "cost") == pytest.approx(seconds / 3600 * 4 * Assumptions.dollars_per_gpu_hour)
    assert _value(plan, "data", "moments.npy") == 65_536 + 128
    rate = _value(plan, "data", "a sample") * _value(plan, "work", "speed")
    assert _value(plan, "data", "rate") == pytest.approx(rate)
    assert _value(plan, "checkpoint", "all") == 40 * _value(plan, "checkpoint", "one")
    held = [one["value"] for one in plan["figures"] if one["part"] == "memory per GPU"]
    assert sum(held[:-1]) == pytest.approx(held[-1]) and held[-1] < 80e9
    fits, assumed = plan["says"]
    assert fits.startswith("It fits") and all(word in assumed for word in ("datasheet", "MFU 31%", "per GPU hour"))


def test_the_demo_is_read_from_the_zoo(demo: dict[str, Any]) -> None:
    assert list(dict.fromkeys(one["part"] for one in demo["figures"])) == PARTS
    assert _value(demo, "data", "moments.npy") == 24 * 16 * 16 * 2 + 128
    (sample,) = (one for one in demo["figures"] if (one["part"], one["what"]) == ("work", "a sample"))
    assert "prior's own forward" in sample["arithmetic"]  # it has the preservation loss
    assert "casts" not in {one["what"] for one in demo["figures"]}
    # So small a step is its launches.
    assert _value(demo, "training", "time") == pytest.approx(200 * Assumptions().launching(32))


def test_an_image_costs_what_the_page_says(demo: dict[str, Any], folder: Path) -> None:
    """But for what activation checkpointing computes again, which no MFU counts."""
    again = _settings("demo", train__activation_checkpointing="true")
    assert flops_per_image(again) == flops_per_image(_settings("demo")) == _value(demo, "work", "a sample")
    assert flops_per_image(_settings("demo", ingest__pixels="131")) is None


def test_every_setting_of_the_training_counts(demo: dict[str, Any], counted: Counted) -> None:
    changes = {"batch_size": "48", "workers": "1", "precision": "bf16", "steps": "1000", "checkpoint_every": "300"}
    plan = describe(_settings("demo", **{f"train__{name}": value for name, value in changes.items()}), counted)
    assert _value(plan, "work", "a sample") == _value(demo, "work", "a sample")
    assert _value(plan, "work", "a step") == 3 * _value(demo, "work", "a step")
    assert _value(plan, "training", "work") == 3 * 5 * _value(demo, "training", "work")
    assert _value(plan, "checkpoint", "all") == 4 * _value(demo, "checkpoint", "one")
    assert _value(plan, "checkpoint", "between two") == pytest.approx(300 * Assumptions().launching(32))
    assert "gradient buckets" not in {one["what"] for one in plan["figures"]}
    activations = [_value(one, "memory per GPU", "activations") for one in (plan, demo)]
    assert activations[0] == 6 * activations[1]  # 48 on one GPU, 8 on each of two
    assert plan["assumptions"]["gpu_flops"] == 989e12 and demo["assumptions"]["gpu_flops"] == 67e12


@pytest.mark.parametrize("workers", [1, 4])
def test_what_does_not_fit_is_told_with_what_would(workers: int, counted: Counted) -> None:
    asked = {"train__batch_size": "60000", "train__workers": str(workers)}
    says = describe(_settings("demo", **asked), counted)["says"][0]
    assert says.startswith("It does not fit")
    advice = dict(re.findall(r"--set ([a-z._]+)=(\d+)", says))
    assert advice.keys() == {"train.micro_batch_size", "train.workers"}
    for name, value in advice.items():
        mended = _settings("demo", **asked | {name.replace(".", "__"): value})
        assert describe(mended, counted)["says"][0].startswith("It fits"), name


def test_a_gpu_that_holds_no_sample_is_told(counted: Counted) -> None:
    huge = counted._replace(cost=replace(counted.cost, activation_bytes=10**12))
    says = describe(_settings("demo"), huge)["says"][0]
    assert "do not hold a single sample: take a GPU with more memory" in says and "--set" not in says


def test_parts_are_shown_with_their_arithmetic(demo: dict[str, Any], counted: Counted) -> None:
    plan = describe(_settings("demo", train__sharding="fsdp", train__micro_batch_size="3"), counted)
    held = [one for one in plan["figures"] if one["part"] == "memory per GPU"]
    assert sum(one["value"] for one in held[:-1]) == pytest.approx(held[-1]["value"])
    names = {one["what"] for one in held}
    assert "gathered" in names and "gradient buckets" not in names
    for one in held:
        shared = one["what"] in ("base", "adapter", "gradients", "optimizer", "average")
        assert ("÷ 2 GPUs" in one["arithmetic"]) == shared, one
    assert _value(plan, "memory per GPU", "base") == _value(demo, "memory per GPU", "base") / 2
    trained = describe(_settings("demo", train__sharding="fsdp-trained"), counted)
    assert _value(trained, "memory per GPU", "base") == _value(demo, "memory per GPU", "base")
    assert _value(trained, "memory per GPU", "average") == _value(plan, "memory per GPU", "average")
    sent = counted.cost.exchanged(3, 2, "fsdp")  # a share of eight, three at once
    assert _value(plan, "work", "each GPU sends") == sent > _value(demo, "work", "each GPU sends")
    (line,) = (one for one in plan["figures"] if one["what"] == "each GPU sends")
    assert line["arithmetic"].startswith("3 pieces × (3 × weights'")  # the preservation loss's forward pass, too
    alone = describe(_settings("demo", train__workers="1"), counted)
    assert "each GPU sends" not in {one["what"] for one in alone["figures"]}


def test_sdxls_preset_fits_on_four_gpus() -> None:
    """Recomputed and in pieces it fits, and its files are as large as the preset says."""
    settings = _settings("sdxl")
    counted = count(settings)  # once, for it takes half a minute
    plan = describe(settings, counted)
    assert _value(plan, "model", "base, frozen") == 2_567_463_684
    # Published are 2.99 TMAC without the attention's products.
    assert 2 * 2.99e12 < _value(plan, "work", "base's forward") < 2 * 3.5e12
    assert plan["says"][0].startswith("It fits") and _value(plan, "memory per GPU", "together") < 60e9
    assert _value(plan, "data", "text.npy") == 77 * 2048 * 2 + 128 and _value(plan, "data", "pooled.npy") == 2688
    samples = settings.ingest.photos_per_shard
    assert 0.5e9 < samples * _value(plan, "data", "a sample") < settings.shard.max_bytes
    # Recomputation and a frozen prior in half precision, as their settings say it.
    held = {one["what"]: one for one in plan["figures"] if one["part"] == "memory per GPU"}
    assert held["base"]["value"] == 2 * 2_567_463_684
    assert "the largest block's" in held["recomputed"]["arithmetic"] and held["recomputed"]["value"] > 1e9
    together = held.pop("together")["value"]
    assert together == pytest.approx(sum(one["value"] for one in held.values()))
    # A step is arithmetic; cut into eight it would be the launches of a base with 140 attention layers.
    assert _value(plan, "work", "a step takes") == pytest.approx(2.93, abs=0.05)
    pieces = describe(_settings("sdxl", train__micro_batch_size="4"), counted)
    assert _value(pieces, "work", "a step takes") == pytest.approx(8 * Assumptions().launching(140))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models__base__location": "somebody/some-model"}, "somebody/some-model"),
        ({"models__clip__location": "s3://bucket/clip"}, "moa doctor"),
        ({"models__base__location": "/does/not/exist"}, "/does/not/exist"),
        ({"models__clip__location": "zoo:nothing"}, "the zoo has"),
        ({"ingest__pixels": "66"}, "ingest.pixels"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(changes: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan_training(_settings("demo", **changes))


def test_people_see_every_figure(
    demo: dict[str, Any], sd15: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    for plan in (demo, sd15):
        show_plan(plan)
        printed = capsys.readouterr().out
        for figure in plan["figures"]:
            row = next(
                line for line in printed.splitlines() if f" {figure['what']} " in line and figure["shown"] in line
            )
            assert figure["arithmetic"] in row
        assert all(sentence in " ".join(printed.split()) for sentence in plan["says"])
