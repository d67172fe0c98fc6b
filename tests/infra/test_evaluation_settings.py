"""Stage 6's settings."""

import pytest
from pydantic import ValidationError

from infra.evaluation_settings import PairPromptSettings, PromptSettings, RegressionSettings
from infra.settings import load_settings


def test_a_prompt_has_its_group_and_one_word() -> None:
    prompt = PromptSettings(template="a {word} riding a horse", scene="", object="a horse", group="action")
    assert prompt.template.format(word="man and a woman") == "a man and a woman riding a horse"
    for template in ("a man", "a {word} and a {word}", "a {word} {x}"):
        with pytest.raises(ValidationError, match="exactly once"):
            PairPromptSettings(template=template, group="action")
    with pytest.raises(ValidationError, match="group"):
        PairPromptSettings(template="a {word}", group="")


def test_no_pairs_need_no_prompts() -> None:
    settings = load_settings("demo", None, {"evaluate.pairs": "0", "evaluate.pair_prompts": "[]"})
    assert settings.evaluate.pair_prompts == []


def test_every_preset_says_how_much_worse_each_measure_may_be() -> None:
    for name in ("demo", "sd15"):
        allowed = load_settings(name).publish.max_regression
        assert all(0 < getattr(allowed, measure) for measure in RegressionSettings.model_fields)
