"""The mixture-of-attention layer (eqs. 1-7): a frozen prior, a personalization expert and a router per latent pixel.

Axes: B batch, N latent pixels, C channels, T text tokens, D text width, S subjects, L cross-attention layers.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from moa_model.layers import LayerShape, unwrapped
from moa_model.prompt import place

_prior = AttnProcessor2_0()  # stateless: the very arithmetic of the stock pipeline, on the host layer's own weights


@dataclass
class AttentionMaps:
    """What the layers of some blocks write down in one forward pass."""

    blocks: Collection[int]
    router: dict[int, Float[Tensor, "B N"]] = field(default_factory=dict)
    """R_0, the prior's weight, by layer index."""
    subject: dict[int, Float[Tensor, "B S N"]] = field(default_factory=dict)
    """A_s, the personalization expert's attention to each subject's token (mean over heads), by cross-layer index."""


@dataclass(frozen=True)
class MoAStep:
    """All that the MoA layers must know in one forward pass of the U-Net; travels in ``cross_attention_kwargs``."""

    word_LBSD: Float[Tensor, "L B S D"]
    """What is added to the subjects' words, per cross-attention layer (eq. 8)."""
    token_BST: Float[Tensor, "B S T"]
    """One-hot place of each subject's word; zeros for no subject."""
    personal_B: Bool[Tensor, " B"] | None = None
    """False where a sample takes the prior alone (early timesteps); None = every sample uses both experts."""
    maps: AttentionMaps | None = None


class Expert(nn.Module):
    """The personalization expert: its own W_q, W_k, W_v and output projection (eqs. 1-3).

    The projections' names differ from diffusers' ``to_q`` …, so that a LoRA finds the prior only.
    """

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.hidden_dim, shape.inner_dim, bias=shape.qkv_bias)
        self.key = nn.Linear(shape.condition_dim, shape.inner_dim, bias=shape.qkv_bias)
        self.value = nn.Linear(shape.condition_dim, shape.inner_dim, bias=shape.qkv_bias)
        self.out = nn.Linear(shape.inner_dim, shape.hidden_dim, bias=shape.out_bias)

    @torch.no_grad()
    def copy_from(self, host: Attention) -> None:
        """Start from the pretrained layer."""
        pairs = ((self.query, host.to_q), (self.key, host.to_k), (self.value, host.to_v), (self.out, host.to_out[0]))
        for own, pretrained in pairs:
            own.load_state_dict(unwrapped(pretrained).state_dict())

    def forward(
        self,
        hidden_BNC: Float[Tensor, "B N C"],
        condition_BTD: Float[Tensor, "B T D"],
        mask: Float[Tensor, "B heads _ T"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """softmax(QKᵀ/√d) V, then the output projection."""
        query, key, value = self._project(hidden_BNC, condition_BTD)
        return self._merge(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))

    def with_maps(
        self,
        hidden_BNC: Float[Tensor, "B N C"],
        condition_BTD: Float[Tensor, "B T D"],
        token_BST: Float[Tensor, "B S T"],
        mask: Float[Tensor, "B heads _ T"] | None = None,
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B S N"]]:
        """The same, and its attention to the subjects' tokens, averaged over heads. The softmax is explicit."""
        query, key, value = self._project(hidden_BNC, condition_BTD)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        attention = (scores if mask is None else scores + mask).softmax(dim=-1)
        map_BSN = torch.einsum("bhnt,bst->bsn", attention, token_BST.to(attention.dtype)) / self.heads
        return self._merge(attention.to(value.dtype) @ value), map_BSN

    def _project(self, hidden_BNC: Tensor, condition_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projected = self.query(hidden_BNC), self.key(condition_BTD), self.value(condition_BTD)
        query, key, value = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in projected)
        return query, key, value

    def _merge(self, values: Tensor) -> Tensor:
        return self.out(rearrange(values, "b h n d -> b n (h d)"))


class MoAAttentionProcessor(nn.Module):
    """One MoA layer, as the processor of a host attention layer that stays in place, untouched, as the prior."""

    def __init__(self, shape: LayerShape, index: int, cross_index: int) -> None:
        """``index`` counts all MoA layers in execution order, ``cross_index`` the cross-attention layers alone."""
        super().__init__()
        self.shape, self.index, self.cross_index = shape, index, cross_index
        self.expert = Expert(shape)
        self.router = nn.Linear(shape.hidden_dim, 2)  # paper: a linear layer or an MLP; linear was enough
        nn.init.zeros_(self.router.weight)  # R = (½, ½) everywhere
        nn.init.zeros_(self.router.bias)

    # The parameters' names are diffusers'; it passes on only what the signature of __call__ names.
    def __call__(  # type: ignore[override]
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "B N C"],
        encoder_hidden_states: Float[Tensor, "B T D"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        moa: MoAStep | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Z' = R_0 ⊙ Attention_prior + R_1 ⊙ Attention_personal; without ``moa`` the prior alone, bit for bit."""
        prior_BNC = _prior(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if moa is None:
            return prior_BNC
        router_BN2 = route(self.router(hidden_states), moa.personal_B)
        personal_BNC = self._personal(attn, hidden_states, encoder_hidden_states, attention_mask, moa)
        if moa.maps is not None and self.shape.block in moa.maps.blocks:
            moa.maps.router[self.index] = router_BN2[..., 0]
        return mix(router_BN2, prior_BNC, personal_BNC)

    def _personal(
        self, attn: Attention, hidden_BNC: Tensor, text_BTD: Tensor | None, mask: Tensor | None, moa: MoAStep
    ) -> Tensor:
        """The personalization expert on the multimodal condition, or on the hidden state itself in self-attention."""
        condition = hidden_BNC
        if self.shape.cross:
            assert text_BTD is not None
            condition = place(text_BTD, moa.word_LBSD[self.cross_index], moa.token_BST)
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, condition.shape[1], len(hidden_BNC))
            mask = mask.view(len(hidden_BNC), attn.heads, -1, mask.shape[-1])
        if self.shape.cross and moa.maps is not None and self.shape.block in moa.maps.blocks:
            personal_BNC, moa.maps.subject[self.index] = self.expert.with_maps(
                hidden_BNC, condition, moa.token_BST, mask
            )
            return personal_BNC
        return self.expert(hidden_BNC, condition, mask)


def route(logits_BN2: Float[Tensor, "B N 2"], personal_B: Bool[Tensor, " B"] | None = None) -> Float[Tensor, "B N 2"]:
    """R = softmax(f(Z)) over prior and personalization (eq. 5), or (1, 0) for samples that take the prior alone."""
    router_BN2 = logits_BN2.softmax(dim=-1)
    if personal_B is None:
        return router_BN2
    return torch.where(personal_B[:, None, None], router_BN2, router_BN2.new_tensor([1.0, 0.0]))


def mix(
    router_BN2: Float[Tensor, "B N 2"], prior_BNC: Float[Tensor, "B N C"], personal_BNC: Float[Tensor, "B N C"]
) -> Float[Tensor, "B N C"]:
    """R_0 ⊙ prior + R_1 ⊙ personal (eq. 7) in one kernel; exact at R = (1, 0), since R_0 + R_1 = 1."""
    return torch.lerp(personal_BNC, prior_BNC, router_BN2[..., :1].to(prior_BNC.dtype))
