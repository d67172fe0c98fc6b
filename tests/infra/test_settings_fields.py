import pytest
from pydantic import ValidationError

from infra.settings_fields import Count, Fraction, FrozenSettings, OptionalText


class Group(FrozenSettings):
    name: OptionalText
    count: Count
    share: Fraction


def test_values_are_checked_and_stay_as_they_are() -> None:
    group = Group(name="", count=1, share=0.5)
    assert group.name is None
    for wrong in ({"count": 0}, {"share": 1.5}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Group.model_validate({"name": "x", "count": 1, "share": 0.5, **wrong})
    with pytest.raises(ValidationError, match="frozen"):
        group.count = 2  # type: ignore[misc]
