"""Training shards as tensors: every sample of the catalog version that a run names, in one order for all workers.

Axes: B batch, C latent channels, H W latent pixels, T text tokens, D text width, S subjects, F image feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor
from torch.nn.functional import interpolate

from infra.errors import UserError
from infra.storage import ObjectStore
from moa_model import Batch, Draw, latents_from_moments
from preprocessing.catalog import ShardRow, load_shard
from preprocessing.shards import decode_instances, decode_npy, read_tar


@dataclass(frozen=True)
class TrainingSample:
    """One sample as precomputed; kept in half precision, about 17 KB in the demo and 190 KB for SD 1.5."""

    moments: Float16[np.ndarray, "C2 H W"]
    text: Float16[np.ndarray, "T D"]
    image_embeds: Float16[np.ndarray, "S V F"]
    tokens: tuple[int, ...]
    masks: Float16[np.ndarray, "S H W"]


class TrainingSamples:
    """All samples of some shards, sorted by shard and key: index i is the same sample on every worker, every time."""

    def __init__(self, store: ObjectStore, rows: Sequence[ShardRow]) -> None:
        """Read and verify the shards; UserError where they hold no sample."""
        self.samples: list[TrainingSample] = []
        for row in sorted(rows, key=lambda row: row.shard):
            for sample in read_tar(load_shard(store, row)):
                moments = decode_npy(sample.parts["moments.npy"])
                tokens = tuple(int(subject["token"]) for subject in sample.json()["subjects"])
                masks = _masks(decode_instances(sample.parts["instances.png"]), len(tokens), moments.shape[-2:])
                text, embeds = decode_npy(sample.parts["text.npy"]), decode_npy(sample.parts["image_embeds.npy"])
                self.samples.append(TrainingSample(moments, text, embeds, tokens, masks))
        if not self.samples:
            raise UserError("There is nothing to train on: no photo came through ingest, caption, segment and shard.")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def image_dim(self) -> int:
        """Width of the subjects' features."""
        return int(self.samples[0].image_embeds.shape[-1])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.samples[0].moments.shape
        return channels // 2, height, width

    def batch(self, indices: Sequence[int], numbers: Draw, null_text: Tensor, scaling: float, shift: float) -> Batch:
        """The samples at `indices` with the random numbers drawn for them, row by row."""
        chosen = [self.samples[index] for index in indices]
        people = max(len(sample.tokens) for sample in chosen)
        moments = torch.from_numpy(np.stack([sample.moments for sample in chosen]))
        tokens = torch.full((len(chosen), people), -1, dtype=torch.long)
        embeds = torch.zeros(len(chosen), people, self.image_dim)
        masks = torch.zeros(len(chosen), people, *moments.shape[-2:])
        for row, sample in enumerate(chosen):
            count, variants = len(sample.tokens), sample.image_embeds.shape[1]
            variant = min(int(numbers.variant[row] * variants), variants - 1)
            tokens[row, :count] = torch.tensor(sample.tokens)
            embeds[row, :count] = torch.from_numpy(sample.image_embeds[:, variant].astype(np.float32))
            masks[row, :count] = torch.from_numpy(sample.masks.astype(np.float32))
        return Batch(
            latents=latents_from_moments(moments, numbers.posterior, scaling, shift),
            text=torch.from_numpy(np.stack([sample.text for sample in chosen])).float(),
            null_text=null_text,
            image_embeds=embeds,
            tokens=tokens,
            masks=masks,
            noise=numbers.noise,
            timesteps=numbers.timesteps,
            dropped=numbers.dropped,
        )


def _masks(instances: np.ndarray, count: int, size: tuple[int, ...]) -> Float16[np.ndarray, "S H W"]:
    """Each subject's share of every latent pixel."""
    layers = np.stack([instances == number for number in range(1, count + 1)]).astype(np.float32)
    shares = interpolate(torch.from_numpy(layers)[None], size=tuple(size), mode="area")[0]
    return shares.numpy().astype(np.float16)
