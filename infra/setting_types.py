"""What the settings' groups are made of: frozen models that know every field, and a few kinds of values."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _empty_is_none(value: object) -> object:
    return None if value == "" else value  # TOML has no null


OptionalText = Annotated[str | None, BeforeValidator(_empty_is_none)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """A group of settings; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
