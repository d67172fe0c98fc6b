"""The count comes from a process of its own, and its failure ends nothing."""

from pathlib import Path

import pytest

from flows import training_flops
from flows.training_flops import FlopsCount
from flows.training_plan import flops_per_image
from infra.settings import Settings
from tests.tiny_world import tiny_settings, write_models


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_models(tmp_path / "models")
    return tiny_settings(tmp_path, tmp_path / "w")


def test_it_is_the_plans_count(settings: Settings) -> None:
    said = list[str]()
    count = FlopsCount(settings, said.append)
    assert count.result == count.result == flops_per_image(settings) and not said


def test_unknown_shapes_are_none(settings: Settings) -> None:
    said = list[str]()
    odd = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"pixels": 131})})
    assert FlopsCount(odd, said.append).result is None and not said


@pytest.mark.parametrize(
    "code, reason",
    [("raise KeyError('an operation')", "an operation"), ("import time; time.sleep(60)", "more than 5 s")],
)
def test_a_failure_is_said_once_and_no_more(
    code: str, reason: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_flops, "_COUNT", code)
    monkeypatch.setattr(training_flops, "_LONGEST_SECONDS", 5.0)
    said = list[str]()
    count = FlopsCount(settings, said.append)
    assert count.result is None and count.result is None
    (sentence,) = said
    assert reason in sentence
