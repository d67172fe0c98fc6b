"""A release's README: what it says, and that strangers' texts in it stay texts."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.model_card import has_header, model_card
from infra.registry import Releases
from infra.storage import DirectoryStore

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def card() -> dict[str, Any]:
    releases = Releases(DirectoryStore(DATA / "registry-1"))
    return copy.deepcopy(releases.card(releases.resolve("3")))


def header(text: str) -> dict[str, Any]:
    assert has_header(text)
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_it_says_what_a_user_must_know(card: dict[str, Any]) -> None:
    text = model_card(card, card["metrics"], "paper-people", "production")
    for wanted in (
        "# paper-people: a Mixture-of-Attention adapter",
        'pull("REGISTRY/paper-people@production")',
        'StableDiffusionPipeline.from_pretrained("infra/zoo/weights/base")',
        f"| trained on | {card['samples']} samples, catalog version {card['catalog_version']} |",
        "| ffhq | Attribution License | not told | 14 | no |",
        "| folder | none given | not told | 6 |  |",
        "**For non-commercial use only**: that is what the terms of ffhq say.",
        "| Identity | 0.984 | 0.978 – 0.991 | 0.984 | 0.984 |",
        "Production was release 1.",
        "Small faces",
        "## The gate: promote",
        *(check["sentence"] for check in card["verdict"]["checks"]),
    ):
        assert wanted in text, wanted
    assert "passed over" not in text and text.endswith("\n") and "\n\n\n" not in text


def test_the_header_is_the_hubs(card: dict[str, Any]) -> None:
    found = header(model_card(card, None, "moa", "production"))
    assert (
        found["license"] == "other" and found["pipeline_tag"] == "text-to-image" and "non-commercial" in found["tags"]
    )
    (result,) = found["model-index"][0]["results"]
    values = {one["type"]: one["value"] for one in result["metrics"]}
    assert values["identity"] == pytest.approx(card["metrics"]["identity"]["mean"], rel=1e-5)
    assert "base_model" not in found
    card["models"]["base"] = "stable-diffusion-v1-5/stable-diffusion-v1-5 (0123456789abcdef)"
    assert (
        header(model_card(card, None, "moa", "production"))["base_model"]
        == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    from huggingface_hub import ModelCardData

    metrics = ModelCardData(**{name.replace("-", "_"): value for name, value in found.items() if name != "model-index"})
    assert metrics.license == "other"


def test_shards_that_were_passed_over_and_a_refusal_are_said(card: dict[str, Any]) -> None:
    account = {"samples": 9, "whole_epochs": 2, "begun": 0, "again": 4, "missing": 4, "proven": True}
    card["course"] = {"attempts": 2, "steps_done_again": 0, "skipped_steps": [], "account": account}
    card["course"]["shards_passed_over"] = ["0123", "4567"]
    card["verdict"] = {"promote": False, "reasons": ["Identity fell."], "checks": []}
    text = model_card(card, None, "moa", "production")
    assert "| shards passed over | 0123, 4567 |" in text and "| attempts | 2 |" in text
    assert "## The gate: do not promote\n\nIdentity fell." in text


def test_free_data_is_not_marked(card: dict[str, Any]) -> None:
    card["licences"] = [{"source": "paperfolk", "licence": "CC0", "photos": 9, "non_commercial": False, "terms": ""}]
    text = model_card(card, None, "moa", "production")
    assert "non-commercial" not in text and "| paperfolk | CC0 | not told | 9 |  |" in text


def test_a_release_of_before_gets_a_card_too() -> None:
    releases = Releases(DirectoryStore(DATA / "registry-of-before"))
    text = model_card(releases.card(releases.resolve("1")), None, "moa", "production")
    assert has_header(text) and "## Data" not in text


def test_the_same_release_has_the_same_card(card: dict[str, Any]) -> None:
    again = json.loads(json.dumps(card, sort_keys=True))
    assert model_card(again, None, "moa", "production") == model_card(card, None, "moa", "production")


HOSTILE = 'x | y\n\n# Title\n<script>alert(1)</script>[link](http://x) `code` ---\n"'


def test_texts_of_strangers_stay_texts(card: dict[str, Any]) -> None:
    plain = model_card(card, None, "moa", "production")
    card["licences"][0] |= {"source": HOSTILE, "licence": HOSTILE, "consent": HOSTILE, "terms": HOSTILE}
    card["models"]["base"] = HOSTILE + " (0123)"
    card["start"] = HOSTILE
    card["verdict"]["checks"][0]["sentence"] = HOSTILE
    card["damaged_shards"] = [HOSTILE]
    text = model_card(card, None, "moa", "production")
    before, code, after = text.replace("```python", "```").split("```")
    assert code.count("\n") == plain.split("```")[1].count("\n")  # a string of one line
    text = before + after
    assert "<script>" not in text.replace("\\<script\\>", "") and "\n# Title" not in text
    assert "[link]" not in text.replace("\\[link\\]", "")
    assert text.count("\n## ") == plain.count("\n## ") and header(text)["license"] == "other"
    for line in text.splitlines():
        if line.startswith("| ") and HOSTILE.split()[0] in line:
            assert line.replace("\\|", "").count("|") in (3, 5, 6)
