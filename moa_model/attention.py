"""The mixture-of-attention layer (eqs. 1-7): a frozen prior, a personalization expert and a router per latent pixel.

Axes: B batch, N latent pixels, C channels, I width of a projection (heads times their width), T text tokens, D text
width, S subjects, L cross-attention layers, K pixels that the router gives to the personalization expert.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from infra.errors import UserError
from moa_model.layers import LayerShape, unwrapped
from moa_model.prompt import place
from moa_model.routing import FixedRouter, fixed, mix, route, steered

_SPARSE_PIXELS = 1024  # smaller layers are quicker dense than picked apart row by row
# A pixel of cross-attention costs a tenth of one of self-attention. Where error² per cost is to be equal, the smallest
# weight that is still worth its cost goes with the cost's square root.
_CROSS_SKIPS = 1 / 3

_prior = AttnProcessor2_0()  # stateless: the very arithmetic of the stock pipeline, on the host layer's own weights


class AttentionMaps:
    """What the layers of some blocks write down in one forward pass.

    What is written stays: activation checkpointing runs the layers once more in the backward pass, and the maps of that
    second run would only hold memory. No dataclass: FSDP looks for tensors in those that a block is called with, and
    calls it with a copy, in which what the block writes would be lost.
    """

    def __init__(
        self,
        blocks: Collection[int],
        asked: Mapping[int, Float[Tensor, "B N"]] | None = None,
        subjects_too: bool = True,
        shares: dict[int, Float[Tensor, ""]] | None = None,
    ) -> None:
        """``subjects_too`` = False: no subject maps, whose explicit softmax costs time and memory.

        ``shares``: mean R_1 over batch and pixels by layer index, of every layer whatever its block; without gradient.
        None = not asked for.
        """
        self.blocks, self.subjects_too, self.shares = blocks, subjects_too, shares
        self.router: dict[int, Float[Tensor, "B N"]] = {}
        """R_0, the prior's weight, by layer index."""
        self.asked: dict[int, Float[Tensor, "B N"]] = dict(asked or {})
        """R_1 as the router says it, before a strength or a threshold changes it."""
        self.subject: dict[int, Float[Tensor, "B S N"]] = {}
        """A_s, the personalization expert's attention to each subject's token (mean over heads), by cross-layer."""


@dataclass(frozen=True)
class TextKeys:
    """Keys and values of the text, which are the same in every step of a run, by cross-attention layer."""

    prior: tuple[tuple[Float[Tensor, "B heads T d"], Float[Tensor, "B heads T d"]], ...]
    personal: tuple[Float[Tensor, "B T 2*I"], ...]
    """Keys and values side by side, the subjects' words changed for this step."""


@dataclass(frozen=True)
class MoAStep:
    """All that the MoA layers must know in one forward pass of the U-Net; travels in ``cross_attention_kwargs``."""

    word_LBSD: Float[Tensor, "L B S D"]
    """What is added to the subjects' words, per cross-attention layer (eq. 8)."""
    token_BST: Float[Tensor, "B S T"]
    """One-hot place of each subject's word; zeros for no subject."""
    share_B: Float[Tensor, " B"] | None = None
    """What each sample's R_1 is multiplied by; 0 is the prior alone (early timesteps). None = 1 for all."""
    maps: AttentionMaps | None = None
    router: FixedRouter | None = None
    """Decides R_1 in place of the layers' own routers."""
    skip_below: float = 0.0
    """R_1 below this (a third of it in cross-attention) counts 0; large layers then save the expert's work there."""
    text: TextKeys | None = None
    """Keys and values of the text where they are known already; else the layers project the text themselves."""


class Expert(nn.Module):
    """The personalization expert: its own W_q, W_k, W_v and output projection (eqs. 1-3).

    Keys and values are one projection. The names differ from diffusers' ``to_q`` …: a LoRA finds the prior alone.
    """

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.hidden_dim, shape.inner_dim, bias=shape.qkv_bias)
        self.key_value = nn.Linear(shape.condition_dim, 2 * shape.inner_dim, bias=shape.qkv_bias)
        self.out = nn.Linear(shape.inner_dim, shape.hidden_dim, bias=shape.out_bias)

    @torch.no_grad()
    def copy_from(self, host: Attention) -> None:
        """Start from the pretrained layer."""
        self.query.load_state_dict(unwrapped(host.to_q).state_dict())
        self.out.load_state_dict(unwrapped(host.to_out[0]).state_dict())
        key, value = (unwrapped(projection).state_dict() for projection in (host.to_k, host.to_v))
        self.key_value.load_state_dict({name: torch.cat([key[name], value[name]]) for name in key})

    def forward(
        self,
        hidden_BNC: Float[Tensor, "B N C"],
        key_value: Float[Tensor, "B T 2*I"],
        mask: Float[Tensor, "B heads _ T"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """softmax(QKᵀ/√d) V, then the output projection; keys and values as ``self.key_value`` gives them."""
        query, key, value = self._heads(hidden_BNC, key_value)
        return self._merge(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))

    def with_maps(
        self,
        hidden_BNC: Float[Tensor, "B N C"],
        key_value: Float[Tensor, "B T 2*I"],
        token_BST: Float[Tensor, "B S T"],
        mask: Float[Tensor, "B heads _ T"] | None = None,
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B S N"]]:
        """The same, and its attention to the subjects' tokens, averaged over heads. The softmax is explicit."""
        query, key, value = self._heads(hidden_BNC, key_value)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        attention = (scores if mask is None else scores + mask).softmax(dim=-1)
        map_BSN = torch.einsum("bhnt,bst->bsn", attention, token_BST.to(attention.dtype)) / self.heads
        return self._merge(attention.to(value.dtype) @ value), map_BSN

    def _heads(self, hidden_BNC: Tensor, key_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, value = (_packed(_split_heads(x, self.heads)) for x in key_value.chunk(2, dim=-1))
        return _split_heads(self.query(hidden_BNC), self.heads), key, value

    def _merge(self, values: Tensor) -> Tensor:
        return self.out(rearrange(values, "b h n d -> b n (h d)"))


class MoAAttentionProcessor(nn.Module):
    """One MoA layer, as the processor of a host attention layer that stays in place, untouched, as the prior."""

    def __init__(self, shape: LayerShape | None = None, index: int = 0, cross_index: int = -1) -> None:
        """``index`` counts all MoA layers in execution order, ``cross_index`` the cross-attention layers alone.

        Raises UserError without a shape: so diffusers makes processors anew when an IP-Adapter comes or goes.
        """
        super().__init__()
        if shape is None:
            raise UserError(
                "The U-Net carries a MoA adapter, and loading or unloading an IP-Adapter would replace its layers: "
                "detach the adapter first."
            )
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
        if moa is None:
            return _prior(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            prior_BNC = _prior(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        elif self.shape.cross and moa.text is not None:
            prior_BNC = _prior_of_keys(attn, hidden_states, *moa.text.prior[self.cross_index])
        else:
            condition = encoder_hidden_states if self.shape.cross else hidden_states
            prior_BNC = _prior_of_keys(attn, hidden_states, *prior_keys(attn, condition))
        skip_below = moa.skip_below * (_CROSS_SKIPS if self.shape.cross else 1)
        if moa.router is None:
            said_BN2 = route(self.router(hidden_states))
        else:
            said_BN2 = fixed(moa.router.weight(self.index, hidden_states.shape[1]), hidden_states)
        router_BN2 = steered(said_BN2, moa.share_B, skip_below)
        if moa.maps is not None and moa.maps.shares is not None:
            moa.maps.shares.setdefault(self.index, router_BN2[..., 1].detach().mean())
        maps = moa.maps if moa.maps is not None and self.shape.block in moa.maps.blocks else None
        if maps is not None:
            maps.router.setdefault(self.index, router_BN2[..., 0])
            maps.asked.setdefault(self.index, said_BN2[..., 1])
        attended = maps is not None and maps.subjects_too and self.shape.cross
        sparse = moa.skip_below and hidden_states.shape[1] >= _SPARSE_PIXELS and attention_mask is None
        if sparse and not attended:
            return self._mix_where_asked(hidden_states, encoder_hidden_states, moa, router_BN2, prior_BNC)
        key_value = self._keys_values(hidden_states, encoder_hidden_states, moa)
        mask = _heads_mask(attn, attention_mask, key_value)
        if attended:
            assert maps is not None
            personal_BNC, map_BSN = self.expert.with_maps(hidden_states, key_value, moa.token_BST, mask)
            maps.subject.setdefault(self.index, map_BSN)
        else:
            personal_BNC = self.expert(hidden_states, key_value, mask)
        return mix(router_BN2, prior_BNC, personal_BNC)

    def _keys_values(self, hidden_BNC: Tensor, text_BTD: Tensor | None, moa: MoAStep) -> Float[Tensor, "B T 2*I"]:
        """Of the multimodal condition, or of the hidden state itself in self-attention."""
        if not self.shape.cross:
            return self.expert.key_value(hidden_BNC)
        if moa.text is not None:
            return moa.text.personal[self.cross_index]
        assert text_BTD is not None
        return self.expert.key_value(place(text_BTD, moa.word_LBSD[self.cross_index], moa.token_BST))

    def _mix_where_asked(
        self, hidden_BNC: Tensor, text_BTD: Tensor | None, moa: MoAStep, router_BN2: Tensor, prior_BNC: Tensor
    ) -> Float[Tensor, "B N C"]:
        """``mix``, the personalization expert asked only for pixels whose R_1 is not 0; changes ``prior_BNC``."""
        asked_BN = router_BN2[..., 1] > 0
        rows = asked_BN.any(dim=1).nonzero()[:, 0].tolist()
        text = self._keys_values(hidden_BNC, text_BTD, moa) if self.shape.cross and rows else None
        for row in rows:
            one = slice(row, row + 1)
            index_K: Int[Tensor, " K"] = asked_BN[row].nonzero()[:, 0]
            key_value = self.expert.key_value(hidden_BNC[one]) if text is None else text[one]
            personal_1KC = self.expert(hidden_BNC[one, index_K], key_value)
            prior_BNC[row, index_K] = mix(router_BN2[one, index_K], prior_BNC[one, index_K], personal_1KC)[0]
        return prior_BNC


def prior_keys(host: Attention, condition_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor]:
    """The prior's keys and values of what it attends to, [B, heads, T, d] each."""
    projected = host.to_k(condition_BTD), host.to_v(condition_BTD)
    key, value = (_packed(_split_heads(x, host.heads)) for x in projected)
    return key, value


def _prior_of_keys(attn: Attention, hidden_BNC: Tensor, key: Tensor, value: Tensor) -> Float[Tensor, "B N C"]:
    """What ``AttnProcessor2_0`` gives for a plain layer (``layers.layer_shapes`` refuses others), bit for bit."""
    query = _split_heads(attn.to_q(hidden_BNC), attn.heads)
    values = functional.scaled_dot_product_attention(query, key, value)
    merged = rearrange(values, "b h n d -> b n (h d)").to(query.dtype)
    return attn.to_out[1](attn.to_out[0](merged))


def _split_heads(projected_BNI: Tensor, heads: int) -> Float[Tensor, "B heads N d"]:
    """A view: the queries' layout is also the output's, which then merges for nothing."""
    return rearrange(projected_BNI, "b n (h d) -> b h n d", h=heads)


def _packed(heads: Float[Tensor, "B heads T d"]) -> Float[Tensor, "B heads T d"]:
    """Keys or values, head by head on a CPU: its kernel reads them once for every few queries, and loses more by
    strides than a copy costs. The numbers are the same, bit for bit."""
    return heads.contiguous() if heads.device.type == "cpu" else heads


def _heads_mask(attn: Attention, mask: Tensor | None, key_value: Tensor) -> Tensor | None:
    if mask is None:
        return None
    batch, tokens = key_value.shape[:2]
    prepared = attn.prepare_attention_mask(mask, tokens, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])
