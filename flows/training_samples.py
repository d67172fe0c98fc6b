"""Training shards as tensors: every sample of the catalog version that a run names, in one order for all workers.

Axes: B batch, C latent channels, H W latent pixels, T text tokens, D text width, S subjects, F image feature.
"""

from collections.abc import Callable, Sequence
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
from preprocessing.shards import Sample, decode_instances, decode_npy, read_tar

# Captions -> their text states [B, T, D]: `Precomputer.text`.
TextEncoder = Callable[[Sequence[str]], np.ndarray]
_TEXT_BATCH = 64


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

    def __init__(self, store: ObjectStore, rows: Sequence[ShardRow], encode_text: TextEncoder | None = None) -> None:
        """Read and verify the shards; UserError where they hold no sample, or lack a column that is not made here.

        encode_text: for shards without text states (`shard.text` = false); a text encoder is small work.
        """
        self.samples: list[TrainingSample] = []
        for row in sorted(rows, key=lambda row: row.shard):
            samples = list(read_tar(load_shard(store, row)))
            for sample, text in zip(samples, _texts(samples, encode_text), strict=True):
                moments, embeds = _array(sample, "moments"), _array(sample, "image_embeds")
                tokens = tuple(int(subject["token"]) for subject in sample.json()["subjects"])
                masks = _masks(decode_instances(sample.parts["instances.png"]), len(tokens), moments.shape[-2:])
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


def missing_column(name: str) -> UserError:
    """What to say of training shards without a column that training does not compute."""
    return UserError(f"Training needs the column {name}, which these shards lack: set shard.{name} to true.")


def _array(sample: Sample, name: str) -> np.ndarray:
    part = sample.parts.get(f"{name}.npy")
    if part is None:
        raise missing_column(name)
    return decode_npy(part)


def _texts(samples: Sequence[Sample], encode_text: TextEncoder | None) -> list[np.ndarray]:
    """The text states of a shard's samples: read, or else computed."""
    lacking = [sample for sample in samples if "text.npy" not in sample.parts]
    if lacking and encode_text is None:
        raise missing_column("text")
    made: list[np.ndarray] = []
    for start in range(0, len(lacking), _TEXT_BATCH):
        assert encode_text is not None
        made += list(encode_text([str(one.json()["caption"]) for one in lacking[start : start + _TEXT_BATCH]]))
    computed = iter(made)
    return [_array(sample, "text") if "text.npy" in sample.parts else next(computed) for sample in samples]


def _masks(instances: np.ndarray, count: int, size: tuple[int, ...]) -> Float16[np.ndarray, "S H W"]:
    """Each subject's share of every latent pixel."""
    layers = np.stack([instances == number for number in range(1, count + 1)]).astype(np.float32)
    shares = interpolate(torch.from_numpy(layers)[None], size=tuple(size), mode="area")[0]
    return shares.numpy().astype(np.float16)
