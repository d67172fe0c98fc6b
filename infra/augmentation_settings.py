"""How the crops of one subject differ: the settings' group `shard.augmentation`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from infra.settings_fields import Fraction, FrozenSettings

Background = Literal["grey", "kept", "noise"]
_Zoom = Annotated[float, Field(gt=0)]


class AugmentationSettings(FrozenSettings):
    """How a subject's crops differ, but for the first, which is plain: that is what is drawn with."""

    backgrounds: list[Background] = Field(min_length=1, description="around the subject, by the crops in turn")
    zoom: tuple[_Zoom, _Zoom] = Field(description="from, to: above 1 a crop is closer than the plain one")
    shift: Fraction = Field(description="most by which a crop is moved each way, of its side")
    flip: Fraction = Field(description="probability of a mirrored crop")
    probability: Fraction = Field(description="of each of the following, by itself, in a crop")
    rotation: float = Field(ge=0, le=180, description="most degrees by which a crop is turned, either way; 0 = none")
    brightness: Fraction = Field(description="largest change of its factor, either way; 0 = none")
    contrast: Fraction = Field(description="the same of the differences from the mean grey")
    saturation: Fraction = Field(description="the same of the differences from grey")
    blur: float = Field(ge=0, description="largest standard deviation, in pixels of the crop; 0 = none")

    @model_validator(mode="after")
    def _zoom_rises(self) -> "AugmentationSettings":
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom goes from {self.zoom[0]:g} to {self.zoom[1]:g}: write the smaller one first")
        return self
