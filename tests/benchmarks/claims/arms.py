"""The MoA family of arms: what is changed in an adapter, and what it is trained on (eqs. 8-12 and their ablations).

Axes: B batch, S subjects, F image feature, D text width, L cross-attention layers, H W latent pixels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moa_model import Batch, Binding, Losses, MoAAdapter, MoATrainingModule, Subjects
from moa_model.attention import AttentionMaps
from moa_model.losses import masked_loss, mean_over_layers, object_loss, preservation_loss, router_loss
from moa_model.prompt import MultimodalPrompt
from tests.benchmarks.claims.plan import ROUTER_FACTOR, Arm, Sampling

_SURE = 30.0  # softmax(−30, 30) leaves the prior 1e-26
DELAY = 800  # FastComposer's `start_merge_step` 10 of 50: the first fifth of the steps sees the plain word


class ConstantPrompt(MultimodalPrompt):
    """Eq. 8 without spacetime conditioning: PE(0, 0) for every timestep and layer, still learned."""

    def forward(
        self,
        image_BSF: Float[Tensor, "B S F"],
        word_BSD: Float[Tensor, "B S D"],
        timestep_B: Float[Tensor, " B"],
        layer_L: Int[Tensor, " L"],
    ) -> Float[Tensor, "L B S D"]:
        return super().forward(image_BSF, word_BSD, torch.zeros_like(timestep_B), torch.zeros_like(layer_L))


class FastComposerPrompt(MultimodalPrompt):
    """The word's embedding plus an MLP of (text, image), one for all layers, from timestep `plain_above` down."""

    plain_above = float("inf")  # in training every timestep is conditioned

    def forward(
        self,
        image_BSF: Float[Tensor, "B S F"],
        word_BSD: Float[Tensor, "B S D"],
        timestep_B: Float[Tensor, " B"],
        layer_L: Int[Tensor, " L"],
    ) -> Float[Tensor, "L B S D"]:
        change_BSD = self.mlp(self.norm_subject(torch.cat([image_BSF, word_BSD], dim=-1)))
        change_BSD = change_BSD * (timestep_B <= self.plain_above)[:, None, None]
        return change_BSD.expand(len(layer_L), -1, -1, -1)


_PROMPTS = {"spacetime": MultimodalPrompt, "constant": ConstantPrompt, "fastcomposer": FastComposerPrompt}


def with_prompt(adapter: MoAAdapter, kind: str) -> MoAAdapter:
    """Give the adapter the arm's way to condition words; the weights stay as they are."""
    config = adapter.config
    prompt = _PROMPTS[kind](config.image_dim, config.text_dim, len(config.layers), config.timesteps)
    prompt.load_state_dict(adapter.prompt.state_dict())
    adapter.prompt = prompt
    return adapter


def without_layer(adapter: MoAAdapter) -> MoAAdapter:
    """R = (0, 1) everywhere, for ever: what is left is the attention layers themselves, fine-tuned."""
    for layer in adapter.layers:
        nn.init.zeros_(layer.router.weight)
        with torch.no_grad():
            layer.router.bias.copy_(torch.tensor([-_SURE, _SURE]))
        layer.router.requires_grad_(False)
    return adapter


class MoAArm(MoATrainingModule):
    """A training of the MoA family: `forward(batch, coin_B, prior_BCHW)` gives the losses."""

    def __init__(self, arm: Arm, unet: nn.Module, scheduler: Any, image_dim: int) -> None:
        adapter = with_prompt(MoAAdapter.for_unet(unet, image_dim), arm.prompt)
        super().__init__(
            unet,
            adapter,
            scheduler,
            lambda_router=arm.lambda_router,
            lambda_object=arm.lambda_object,
            blocks=arm.blocks,
            router_foreground=arm.router_foreground,
            lambda_preservation=arm.lambda_preservation,
        )
        self.masked_probability = arm.masked_probability
        if not arm.moa_layer:
            without_layer(adapter)

    @property
    def trained(self) -> nn.Module:
        """What is averaged and kept."""
        return self.adapter

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        return self.optimizer_groups(learning_rate, ROUTER_FACTOR)

    def forward(  # type: ignore[override]
        self, batch: Batch, coin_B: Float[Tensor, " B"], prior_BCHW: Float[Tensor, "B C H W"] | None
    ) -> Losses:
        """The project's own training step, but for two things: a sample whose coin (0 … 1) is not below the arm's
        probability of the masked loss counts all its pixels, and the prior's prediction is given."""
        mask_BHW = batch.masks.amax(dim=1)
        text_BTD = torch.where(batch.dropped[:, None, None], batch.null_text, batch.text)
        token_BS = torch.where(batch.dropped[:, None], -1, batch.tokens)
        maps = AttentionMaps(self.blocks)
        noisy_BCHW = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        moa = {"moa": Subjects(batch.image_embeds, token_BS, maps)}
        prediction_BCHW = self.unet(
            noisy_BCHW, batch.timesteps, text_BTD, cross_attention_kwargs=moa, return_dict=False
        )[0]
        size = (batch.latents.shape[-2], batch.latents.shape[-1])
        counted_BHW = torch.where((coin_B < self.masked_probability)[:, None, None], mask_BHW, 1.0)
        masked = masked_loss(prediction_BCHW, self._target(batch), counted_BHW)
        prior_weight_BHW = mean_over_layers(maps.router.values(), size)
        router = router_loss(prior_weight_BHW, mask_BHW, self.router_normalisation, self.router_foreground)
        attention_BSHW = mean_over_layers(maps.subject.values(), size)
        balance = object_loss(attention_BSHW, batch.masks, (token_BS >= 0).float())
        total = masked + self.lambda_router * router + self.lambda_object * balance
        preservation = masked.new_zeros(())
        if prior_BCHW is not None:
            preservation = preservation_loss(prediction_BCHW, prior_BCHW, mask_BHW)
            total = total + self.lambda_preservation * preservation
        return Losses(total, masked, router, balance, preservation)

    def keep(self, folder: Path) -> None:
        """Write what is drawn from."""
        self.adapter.save_pretrained(folder)


class AlteredRouter(nn.Module):
    """A router whose R_1 is set to 0 below a threshold and multiplied by a strength; still logits, for the softmax."""

    def __init__(self, router: nn.Module, strength: float, threshold: float) -> None:
        super().__init__()
        self.router, self.strength, self.threshold = router, strength, threshold

    def forward(self, hidden_BNC: Float[Tensor, "B N C"]) -> Float[Tensor, "B N 2"]:
        personal_BN = self.router(hidden_BNC).softmax(dim=-1)[..., 1]
        personal_BN = torch.where(personal_BN < self.threshold, 0.0, personal_BN) * self.strength
        return torch.stack([1 - personal_BN, personal_BN], dim=-1).log()


class SampledAdapter(MoAAdapter):
    """An adapter read back, set up to be drawn from as a `Sampling` says."""

    sampling = Sampling()

    @classmethod
    def open(cls, folder: Path, arm: Arm, sampling: Sampling) -> "SampledAdapter":
        """Read an arm's adapter."""
        adapter = cls.from_pretrained(folder)
        with_prompt(adapter, arm.prompt)
        if isinstance(adapter.prompt, FastComposerPrompt):
            adapter.prompt.plain_above = DELAY
        if sampling.strength != 1 or sampling.threshold:
            for layer in adapter.layers:
                layer.router = AlteredRouter(layer.router, sampling.strength, sampling.threshold)
        above = sampling.prior_only_above
        adapter.prior_only_above = arm.prior_only_above if above is None else above
        adapter.sampling = sampling
        return adapter.eval()

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The base's binding; where the sampling says so, the unconditional half takes the prior alone."""
        bound = super().bind(*args, **kwargs)
        if self.sampling.unconditional == "experts" or not bound:
            return bound
        binding = bound["moa"]
        return bound | {"moa": _PriorUnconditional(binding.image_PSF, binding.token_PS, binding.guided)}


class _PriorUnconditional(Binding):
    def for_batch(self, rows: int) -> Subjects:
        subjects = super().for_batch(rows)
        if not self.guided():
            return subjects
        assert subjects.bound_B is not None
        conditional_B = torch.arange(rows) >= rows // 2
        return replace(subjects, bound_B=subjects.bound_B & conditional_B)
