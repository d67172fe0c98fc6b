"""What the routers and the personalization experts looked at, step by step, and how to let another run do the same.

Axes: B rows of the U-Net's batch (the unconditional half first), S subjects, h w a layer's size, H W the latent's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from infra.errors import UserError
from moa_model.attention import AttentionMaps
from moa_model.layers import layer_size
from moa_model.losses import mean_over_layers
from moa_model.routing import RecordedRouter


@dataclass(frozen=True)
class RecordedStep:
    """The maps of one denoising step; rows as in the U-Net's batch (the unconditional half first)."""

    timestep: float
    latent_size: tuple[int, int]
    maps: AttentionMaps

    def router(self) -> dict[int, Float[Tensor, "B h w"]]:
        """R_0, the prior's weight, by layer index, at each layer's own size."""
        return {index: self._picture(flat) for index, flat in self.maps.router.items()}

    def subject(self) -> dict[int, Float[Tensor, "B S h w"]]:
        """The personalization expert's attention to each subject's word, by layer index (cross-attention only)."""
        return {index: self._picture(flat) for index, flat in self.maps.subject.items()}

    def mean_router(self) -> Float[Tensor, "B H W"]:
        """R_0, mean over layers, at the latent's size."""
        return mean_over_layers(self.maps.router.values(), self.latent_size)

    def mean_asked(self) -> Float[Tensor, "B H W"]:
        """R_1 as the routers say it, before a strength or a threshold; mean over layers, at the latent's size."""
        return mean_over_layers(self.maps.asked.values(), self.latent_size)

    def _picture(self, flat: Tensor) -> Tensor:
        return flat.float().unflatten(-1, layer_size(self.latent_size, flat.shape[-1]))


def recorded_router(steps: Sequence[RecordedStep], timestep: float, rows: int) -> RecordedRouter:
    """The router of the recorded step at this timestep.

    Raises UserError where no step was recorded there, or for another number of pictures.
    """
    found = [step for step in steps if abs(step.timestep - timestep) < 1e-3]
    if not found:
        raise UserError(
            f"The recorded run has no step at timestep {timestep:g}: record it with the same scheduler and steps."
        )
    prior_BN = found[-1].maps.router
    recorded = len(next(iter(prior_BN.values())))
    if recorded != rows:
        raise UserError(
            f"The recorded run had {recorded} rows in the U-Net's batch, this one has {rows}: "
            "record it with as many pictures and the same kind of guidance."
        )
    return RecordedRouter(prior_BN)
