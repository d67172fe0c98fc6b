"""What the settings' groups are made of: their kind of model, and fields that several of them have."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _empty_is_none(value: object) -> object:
    return None if value == "" else value  # TOML has no null


OptionalText = Annotated[str | None, BeforeValidator(_empty_is_none)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class FrozenSettings(BaseModel):
    """A group of settings that nothing changes and that knows no other names."""

    model_config = ConfigDict(frozen=True, extra="forbid")
