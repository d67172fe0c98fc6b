"""What an adapter is, as the JSON file beside its weights says it."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moa_model.layers import LayerShape, shapes_digest


class MoAConfig(BaseModel):
    """``adapter_config.json``: everything that is needed to build the adapter's modules before its weights are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["moa-adapter/2"] = "moa-adapter/2"
    image_dim: int = Field(gt=0, description="Width of the image feature: the projection_dim of the CLIP vision tower.")
    text_dim: int = Field(gt=0, description="Width of the base's text embeddings.")
    timesteps: int = Field(1000, gt=0, description="Diffusion timesteps of the base's noise schedule.")
    prior_only_above: int = Field(
        800,
        description="Timesteps above this one are sampled with the prior alone: the experts were never trained there. "
        "The first steps decide the layout; 700 keeps more of the scene and less of the identity.",
    )
    skip_below: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="R_1 below this (a third of it in cross-attention) counts 0, and large layers save the expert's "
        "work there; 0 = exact.",
    )
    image_encoder: str = Field(
        "", description="Name of the CLIP that made the image features; another one will not do."
    )
    layers: tuple[LayerShape, ...] = Field(min_length=1, description="The base's attention layers in execution order.")
    base_digest: str = Field("", description="sha256 over the layers' shapes: another base is refused by it.")

    @model_validator(mode="after")
    def _digest_agrees(self) -> Self:
        digest = shapes_digest(self.layers)
        if self.base_digest not in ("", digest):
            raise ValueError("base_digest does not agree with layers")
        object.__setattr__(self, "base_digest", digest)
        return self
