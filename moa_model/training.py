"""One MoA training step: noise, U-Net, three losses. Plain PyTorch; wrap the module in DDP for many workers.

Axes: B batch, C latent channels, H W latent pixels, T text tokens, D text width, P width of a pooled text, S subjects,
F image feature, L attention layers.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from diffusers import DDPMScheduler
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.attention import AttentionMaps
from moa_model.binding import Subjects
from moa_model.layers import penalised_blocks
from moa_model.losses import Losses, masked_loss, mean_over_layers, object_loss, preservation_loss, router_loss


def rate_scale(step: int, steps: int, warmup: int, schedule: Literal["constant", "cosine"] = "constant") -> float:
    """What the learning rate is multiplied by in step ``step`` (from 0) of ``steps``: a linear warm-up, then as asked.

    "cosine" falls to zero along half a cosine. A pure function of the step, so that a resumed run goes on as it was.
    """
    scale = min(1.0, (step + 1) / max(warmup, 1))
    if schedule == "cosine" and step >= warmup:
        scale *= 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))
    return scale


@dataclass(frozen=True)
class Batch:
    """A worker's samples of one step, with the random numbers that ``sampling.draw`` gave them."""

    latents: Float[Tensor, "B C H W"]
    """Scaled VAE latents without noise."""
    text: Float[Tensor, "B T D"]
    null_text: Float[Tensor, "T D"]
    """Embedding of the empty prompt, for samples whose condition is dropped."""
    image_embeds: Float[Tensor, "B S F"]
    tokens: Int[Tensor, "B S"]
    """Index of each subject's word, −1 = no subject."""
    masks: Float[Tensor, "B S H W"]
    """Each subject's pixels at latent size, 0 … 1."""
    noise: Float[Tensor, "B C H W"]
    timesteps: Int[Tensor, " B"]
    dropped: Bool[Tensor, " B"]
    pooled: Float[Tensor, "B P"] | None = None
    """SDXL's pooled text, as ``null_pooled`` and ``time_ids``; None for a base that takes a text alone."""
    null_pooled: Float[Tensor, " P"] | None = None
    time_ids: Float[Tensor, "B 6"] | None = None
    """Height and width of the photo, top and left of the cut, height and width of what was cut. Single precision:
    half a number cannot say 1023."""

    @property
    def added_conditions(self) -> dict[str, Tensor] | None:
        """What SDXL's U-Net takes beside the text: the pooled one, of the empty prompt where the condition is dropped,
        and the true sizes, whether or not it is, as a stock pipeline guides."""
        if self.pooled is None or self.null_pooled is None or self.time_ids is None:
            return None
        pooled_BP = torch.where(self.dropped[:, None], self.null_pooled, self.pooled)
        return {"text_embeds": pooled_BP, "time_ids": self.time_ids}

    def to(self, where: torch.device | str | torch.dtype) -> Self:
        """The batch on another device, or its real numbers in another precision."""

        def moved(tensor: Tensor) -> Tensor:
            if isinstance(where, torch.dtype):
                return tensor.to(where) if tensor.is_floating_point() else tensor
            return tensor.to(where, non_blocking=True)

        return self._each(moved)

    def pin_memory(self) -> Self:
        """The batch in memory from which a GPU fetches by itself."""
        return self._each(Tensor.pin_memory)

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, start: int, stop: int) -> Self:
        """Some of its samples."""
        return self._each(lambda tensor: tensor[start:stop], whole=("null_text", "null_pooled"))

    def _each(self, change: Callable[[Tensor], Tensor], whole: Collection[str] = ()) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value if value is None or name in whole else change(value) for name, value in values.items()}
        return type(self)(**changed)


class MoATrainingModule(nn.Module):
    """Frozen U-Net and trained adapter; ``forward(batch)`` gives the losses."""

    def __init__(
        self,
        unet: nn.Module,
        adapter: MoAAdapter,
        scheduler_config: Any,
        *,
        lambda_router: float = 0.1,
        lambda_object: float = 1e-4,
        blocks: Literal["middle", "all"] = "middle",
        router_normalisation: Literal["mean", "sum"] = "mean",
        router_foreground: float = 0.0,
        lambda_preservation: float = 0.0,
    ) -> None:
        """``scheduler_config`` is the base's (``pipe.scheduler.config``); its prediction type decides the target.

        ``blocks``: which ones the router and object losses cover (``layers.penalised_blocks``).
        ``router_foreground`` and ``lambda_preservation`` are ours (``losses.router_loss``, ``preservation_loss``): 0,
        as by default, is the paper's objective. The latter costs a second forward pass, of the prior alone.
        Raises UserError for a prediction type other than epsilon and v_prediction.
        """
        super().__init__()
        self.scheduler = DDPMScheduler.from_config(scheduler_config)
        if self.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f'The base predicts "{self.scheduler.config.prediction_type}": MoA trains on epsilon or v_prediction.'
            )
        if not adapter.is_attached(unet):
            adapter.attach(unet)
        self.unet, self.adapter = unet, adapter
        self.lambda_router, self.lambda_object = lambda_router, lambda_object
        self.router_normalisation: Literal["mean", "sum"] = router_normalisation
        self.router_foreground, self.lambda_preservation = router_foreground, lambda_preservation
        self.blocks = penalised_blocks(adapter.config.layers, blocks)
        self.layer_names = tuple(shape.name for shape in adapter.config.layers)
        self.router_share_L: Float[Tensor, " L"] | None = None
        """Mean R_1 of each layer in the last forward pass, on the device and without gradient; see ``layer_names``."""
        adapter.prior_only_above = adapter.config.timesteps  # whatever is drawn to train on is trained
        unet.eval().requires_grad_(False)  # the prior is frozen for ever …
        adapter.float().train().requires_grad_(True)  # … and the experts, which it now carries, are trained

    def forward(
        self,
        batch: Batch,
        *,
        counted_BHW: Float[Tensor, "B H W"] | None = None,
        prior_BCHW: Float[Tensor, "B C H W"] | None = None,
    ) -> Losses:
        """Losses of one batch (eq. 12 and ours).

        ``counted_BHW``: the pixels of eq. 9; None = the people's. ``prior_BCHW``: the prior's prediction for the
        preservation loss where it is known; else a second forward pass makes it.
        """
        mask_BHW = batch.masks.amax(dim=1)
        text_BTD = torch.where(batch.dropped[:, None, None], batch.null_text, batch.text)
        token_BS = torch.where(batch.dropped[:, None], -1, batch.tokens)
        shares: dict[int, Tensor] = {}
        maps = AttentionMaps(self.blocks, shares=shares)
        inputs = (self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps), batch.timesteps, text_BTD)
        moa = {"moa": Subjects(batch.image_embeds, token_BS, maps)}
        options = {"added_cond_kwargs": batch.added_conditions, "return_dict": False}
        prediction_BCHW = self.unet(*inputs, cross_attention_kwargs=moa, **options)[0]
        self.router_share_L = torch.stack([shares[index] for index in sorted(shares)])
        size = (batch.latents.shape[-2], batch.latents.shape[-1])
        counted = mask_BHW if counted_BHW is None else counted_BHW
        masked = masked_loss(prediction_BCHW.to(batch.latents.dtype), denoising_target(self.scheduler, batch), counted)
        prior_weight_BHW = mean_over_layers(maps.router.values(), size)
        router = router_loss(prior_weight_BHW, mask_BHW, self.router_normalisation, self.router_foreground)
        attention_BSHW = mean_over_layers(maps.subject.values(), size)
        balance = object_loss(attention_BSHW, batch.masks, (token_BS >= 0).float())
        total = masked + self.lambda_router * router + self.lambda_object * balance
        preservation = masked.new_zeros(())
        if self.lambda_preservation:
            if prior_BCHW is None:
                with torch.no_grad():
                    prior_BCHW = self.unet(*inputs, **options)[0]  # no subjects: the prior alone
            preservation = preservation_loss(prediction_BCHW, prior_BCHW, mask_BHW)
            total = total + self.lambda_preservation * preservation
        return Losses(total, masked, router, balance, preservation)

    def optimizer_groups(self, learning_rate: float, router_learning_rate_factor: float = 2.0) -> list[dict[str, Any]]:
        """Parameter groups: experts and prompt at ``learning_rate``, routers at ``factor`` times that.

        A prompt MLP at five times the experts' rate learned no identity at all.
        """
        routers = [parameter for layer in self.adapter.layers for parameter in layer.router.parameters()]
        seen = set(map(id, routers))
        others = [parameter for parameter in self.adapter.parameters() if id(parameter) not in seen]
        return [
            {"params": others, "lr": learning_rate},
            {"params": routers, "lr": learning_rate * router_learning_rate_factor},
        ]


def denoising_target(scheduler: DDPMScheduler, batch: Batch) -> Float[Tensor, "B C H W"]:
    """What the base predicts for the batch: its noise, or v = √ᾱ ε − √(1−ᾱ) z (arXiv 2202.00512, app. D)."""
    if scheduler.config.prediction_type == "epsilon":
        return batch.noise
    return scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
