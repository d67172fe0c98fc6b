"""The multimodal, spacetime-conditioned prompt (eq. 8).

Axes: B batch, S subjects, F image feature, D text width, M = F + D, L cross-attention layers, T text tokens.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

_OCTAVES = 8  # the finest sine has a period of 1/128: about 8 timesteps of 1000


class SpacetimeEncoding(nn.Module):
    """PE(t, l): sines of timestep and layer index, then a learned two-layer map to ``width``."""

    def __init__(self, width: int, layers: int, timesteps: int) -> None:
        super().__init__()
        self.layers, self.timesteps = layers, timesteps
        self.encode = nn.Sequential(nn.Linear(4 * _OCTAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep_B: Float[Tensor, " B"], layer_L: Int[Tensor, " L"]) -> Float[Tensor, "L B M"]:
        """Encode every pair of timestep (0 … timesteps) and layer index (0 … layers)."""
        time_LBK = sines(timestep_B / self.timesteps).expand(len(layer_L), -1, -1)
        place_LBK = sines(layer_L / self.layers)[:, None].expand(-1, len(timestep_B), -1)
        return self.encode(torch.cat([time_LBK, place_LBK], dim=-1).to(self.encode[0].weight.dtype))


class MultimodalPrompt(nn.Module):
    """Text embeddings of the subjects' words, replaced for the personalization experts only (eq. 8).

    m = concat(f, t);  m̄_{t,l} = LayerNorm(m) + LayerNorm(PE(t, l));  t' = t + MLP(m̄_{t,l}).
    The paper leaves the MLP open. Here its last layer starts at zero and it is added to the word's own embedding, so
    that training starts at the base model's behaviour.
    """

    def __init__(self, image_dim: int, text_dim: int, layers: int, timesteps: int) -> None:
        super().__init__()
        width = image_dim + text_dim
        self.encoding = SpacetimeEncoding(width, layers, timesteps)
        self.norm_subject = nn.LayerNorm(width)
        self.norm_encoding = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, text_dim))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(
        self,
        image_BSF: Float[Tensor, "B S F"],
        word_BSD: Float[Tensor, "B S D"],
        timestep_B: Float[Tensor, " B"],
        layer_L: Int[Tensor, " L"],
    ) -> Float[Tensor, "L B S D"]:
        """What is added to each subject's word, for every cross-attention layer of one denoising step at once."""
        subject_BSM = self.norm_subject(torch.cat([image_BSF, word_BSD], dim=-1))
        encoding_LBM = self.norm_encoding(self.encoding(timestep_B, layer_L))
        return self.mlp(subject_BSM + rearrange(encoding_LBM, "L B M -> L B 1 M"))


def sines(position_K: Float[Tensor, " K"]) -> Float[Tensor, "K features"]:
    """Sine and cosine of a position in 0 … 1 at ``_OCTAVES`` octaves, the lowest a half wave."""
    octave = math.pi * 2 ** torch.arange(_OCTAVES, device=position_K.device, dtype=torch.float32)
    angle = position_K.float()[:, None] * octave
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def one_hot_tokens(token_BS: Int[Tensor, "B S"], tokens: int, like: Tensor) -> Float[Tensor, "B S T"]:
    """1 where subject s stands at token t; a row of zeros for token −1 (no subject)."""
    return (token_BS[..., None] == torch.arange(tokens, device=token_BS.device)).to(like.dtype)


def place(
    text_BTD: Float[Tensor, "B T D"], change_BSD: Float[Tensor, "B S D"], token_BST: Float[Tensor, "B S T"]
) -> Float[Tensor, "B T D"]:
    """The multimodal condition of one layer: plain text, changed at the subjects' words alone."""
    return text_BTD + torch.einsum("bst,bsd->btd", token_BST, change_BSD)
