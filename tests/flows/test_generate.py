"""Which photo goes to which word."""

import pytest

from flows.generate import words_for
from infra.errors import UserError


def test_words_in_the_prompts_order() -> None:
    assert words_for("A man and a woman and a man on the beach", 3) == ["man", "woman", "man"]
    assert words_for("a woman and a man", 1) == ["woman"]
    assert words_for("a beach", 0) == []


def test_too_few_words() -> None:
    with pytest.raises(UserError, match="1 words .* for 2 photos"):
        words_for("a photo of a man", 2)
