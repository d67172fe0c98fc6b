"""The MoA family of arms: what is changed in an adapter, and what it is trained on (eqs. 8-12 and their ablations).

Axes: B batch, S subjects, F image feature, D text width, L cross-attention layers, H W latent pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moa_model import Batch, Binding, Losses, MoAAdapter, MoATrainingModule, Subject, Subjects
from moa_model.binding import SubjectsByWord
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
        for layer in adapter.layers:
            nn.init.constant_(layer.router.bias[1:], arm.router_bias)
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
        """The project's own training step, but for one thing: a sample whose coin (0 … 1) is not below the arm's
        probability of the masked loss counts all its pixels. The prior's prediction may be given."""
        masked_B11 = (coin_B < self.masked_probability)[:, None, None]
        counted_BHW = torch.where(masked_B11, batch.masks.amax(dim=1), 1.0)
        return super().forward(batch, counted_BHW=counted_BHW, prior_BCHW=prior_BCHW)

    def keep(self, folder: Path) -> None:
        """Write what is drawn from."""
        self.adapter.save_pretrained(folder)


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
        adapter.skip_below = sampling.threshold
        above = sampling.prior_only_above
        adapter.prior_only_above = arm.prior_only_above if above is None else above
        adapter.sampling = sampling
        return adapter.eval()

    def bind(
        self,
        pipe: Any,
        prompt: str | Sequence[str],
        subjects: SubjectsByWord | Sequence[SubjectsByWord],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The project's binding, at the sampling's strength; where it says so, half of the guidance is the prior's."""
        strength = self.sampling.strength
        given = [subjects] if isinstance(subjects, Mapping) else list(subjects)
        weighed = [{word: Subject(portrait, strength) for word, portrait in one.items()} for one in given]
        bound = super().bind(pipe, prompt, weighed, *args, **kwargs)  # type: ignore[arg-type]
        if self.sampling.unconditional == "experts" or not bound:
            return bound
        return {"moa": _PriorUnconditional(**vars(bound["moa"]))}


class _PriorUnconditional(Binding):
    def for_batch(self, rows: int, timestep: float | None = None) -> Subjects:
        subjects = super().for_batch(rows, timestep)
        if not self.run.guided():
            return subjects
        assert subjects.share_B is not None
        conditional_B = torch.arange(rows) >= rows // 2
        return replace(subjects, share_B=subjects.share_B * conditional_B)
