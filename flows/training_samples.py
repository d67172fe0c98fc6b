"""Training shards as batches: which samples a worker takes in a step, read from local files when they are needed.

Axes: B batch, C latent channels, H W latent pixels, T text tokens, D text width, P pooled text, S subjects, V variants,
F feature.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from flows.training_account import Place, sound_place, tally
from infra.errors import UserError
from infra.settings import TrainSettings
from infra.shard_cache import ShardCache
from moa_model import Batch, Draw, SampleOrder, draw, latents_from_moments, share
from preprocessing.augmentation import fresh_crops
from preprocessing.catalog import ShardRow
from preprocessing.micro_conditioning import time_ids
from preprocessing.precompute import Precomputer
from preprocessing.shard_reader import SampleChanged, ShardIndex, ShardReader
from preprocessing.shards import Sample, decode_instances, decode_npy, decode_picture

_INDEXED = 1_000_000  # samples whose places are remembered from one epoch to the next: 350 MB


@dataclass(frozen=True)
class TrainingSample:
    """One sample as precomputed, in half precision: about 17 KB in the demo, 190 KB for SD 1.5, 590 KB for SDXL."""

    key: str
    moments: Float16[np.ndarray, "C2 H W"]
    text: Float16[np.ndarray, "T D"]
    image_embeds: Float16[np.ndarray, "S V F"]
    tokens: tuple[int, ...]
    masks: Float16[np.ndarray, "S H W"]
    pooled: Float16[np.ndarray, " P"] | None = None
    """SDXL's, as the photo's size and cut."""
    time_ids: tuple[int, ...] = ()


class TrainingSamples:
    """The samples of some shards in the training's order: position k is the same one on every machine, every time."""

    def __init__(
        self,
        cache: ShardCache,
        rows: Sequence[ShardRow],
        settings: TrainSettings,
        models: Precomputer | None = None,
        damaged: Collection[str] = (),
    ) -> None:
        """UserError where there is no sample.

        models: for columns that the shards lack: these are computed for each sample by itself, so that the result does
        not depend on its neighbours. damaged: names of shards that are passed over: in a sample's place stands the next
        one of a sound shard.
        """
        self.rows = sorted(rows, key=lambda row: row.shard)
        self._sound = [row.shard not in damaged for row in self.rows]
        if not sum(row.samples for row, sound in zip(self.rows, self._sound, strict=True) if sound):
            raise UserError("There is nothing to train on: no photo came through ingest, caption, segment and shard.")
        self.order = SampleOrder(settings.seed, [row.samples for row in self.rows], settings.shuffle_shards)
        self._cache, self._models, self._window = cache, models, settings.shuffle_shards
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._indexes: dict[int, ShardIndex] = {}
        self._seen = set[int]()
        self._fetching: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without open files and threads."""
        return self.__dict__ | {"_open": OrderedDict(), "_indexes": {}, "_fetching": None}

    def __len__(self) -> int:
        return self.order.count

    def raw(self, position: int) -> Sample:
        """The sample at a position, as it lies in its shard."""
        return self._intact(position)

    def place(self, position: int) -> Place:
        """Where the sample at a position lies."""
        return sound_place(self.order, self._sound, position)

    def __getitem__(self, position: int) -> TrainingSample:
        """The sample at a position; UserError where it lacks a column that cannot be computed here, DamagedObject where
        its shard has become another one under our hands."""
        return training_sample(self._intact(position), self._models, (self.order.seed, position))

    def _intact(self, position: int) -> Sample:
        shard, number = self.place(position)
        while True:
            try:
                return self._shard(shard, position)[number]
            except SampleChanged:
                # A copy is fetched anew, an object that is read in place is looked at again, which refuses it.
                self._cache.distrust(self.rows[shard].sha256)
                del self._open[shard]
                self._indexes.pop(shard, None)  # where there are too many, it is not remembered

    def _shard(self, shard: int, position: int) -> ShardReader:
        if shard not in self._open:
            row = self.rows[shard]
            index = self._indexes.get(shard)
            if index is None and shard in self._seen:  # its checksums are taken anew, and not of other bytes
                self._cache.distrust(row.sha256)
            self._open[shard] = ShardReader(self._cache.path(row.object_key, row.sha256), index)
            self._seen.add(shard)
            if index is None and sum(map(len, self._indexes.values())) < _INDEXED:
                self._indexes[shard] = self._open[shard].index
            if len(self._open) > 2 * self._window:
                self._open.popitem(last=False)
            self._fetch_ahead(position)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _fetch_ahead(self, position: int) -> None:
        """Begin to fetch what this window and the next one still lack."""
        if self._cache.in_place:
            return
        if self._fetching is None:
            self._fetching = ThreadPoolExecutor(1)
        for shard in islice(self.order.shards_from(position), 2 * self._window):
            if self._sound[shard] and shard not in self._open:
                row = self.rows[shard]  # what fails here is said when it is needed
                self._fetching.submit(self._cache.path, row.object_key, row.sha256)


@dataclass(frozen=True)
class StepBatch:
    """One worker's share of a step, the keys of its samples, and what they add to the step's tally."""

    batch: Batch
    keys: tuple[str, ...]
    tally: int = 0

    def pin_memory(self) -> "StepBatch":
        """Called by torch's loader where it pins."""
        return replace(self, batch=self.batch.pin_memory())


@dataclass(frozen=True)
class StepBatches(Dataset[StepBatch]):
    """Step → one worker's share of its batch: a pure function of the samples, the settings and the step."""

    samples: TrainingSamples
    settings: TrainSettings
    null_text: Float16[np.ndarray, "T D"]
    scaling: float
    shift: float = 0.0
    rank: int = 0
    workers: int = 1
    dtype: torch.dtype = field(default=torch.float32)
    null_pooled: Float16[np.ndarray, " P"] | None = None

    def __getitem__(self, step: int) -> StepBatch:
        first, mine = step * self.settings.batch_size, share(self.settings.batch_size, self.rank, self.workers)
        positions = range(first + mine.start, first + mine.stop)
        chosen = [self.samples[position] for position in positions]
        channels, *size = chosen[0].moments.shape
        numbers = draw(
            self.settings.seed,
            positions,
            (channels // 2, size[0], size[1]),
            self.settings.max_timestep,
            self.settings.condition_dropout,
            self.settings.timestep_exponent,
        )
        null_text = torch.from_numpy(self.null_text).float()
        null_pooled = None if self.null_pooled is None else torch.from_numpy(self.null_pooled).float()
        batch = batch_of(chosen, numbers, null_text, self.scaling, self.shift, null_pooled)
        read = sum(tally(position, self.samples.place(position)) for position in positions)
        return StepBatch(batch.to(self.dtype), tuple(sample.key for sample in chosen), read)


def training_sample(
    sample: Sample, models: Precomputer | None = None, seed_and_position: tuple[int, int] = (0, 0)
) -> TrainingSample:
    """What of a shard's sample is trained on; a column that it lacks is computed by the models, or UserError.

    Subjects whose features it lacks are cut out anew at every position: their features are those of one variant.
    """
    moments, embeds = _column(sample, "moments", models), _column(sample, "image_embeds", models, seed_and_position)
    about, instances = sample.json(), decode_instances(sample.parts["instances.png"])
    tokens = tuple(int(subject["token"]) for subject in about["subjects"])
    masks = _masks(instances, len(tokens), moments.shape[-2:])
    text, pooled = _text(sample, models)
    sizes = () if pooled is None else time_ids(about, len(instances))
    return TrainingSample(sample.key, moments, text, embeds, tokens, masks, pooled, sizes)


def batch_of(
    chosen: Sequence[TrainingSample],
    numbers: Draw,
    null_text: Float[Tensor, "T D"],
    scaling: float,
    shift: float = 0.0,
    null_pooled: Float[Tensor, " P"] | None = None,
) -> Batch:
    """Some samples with the random numbers drawn for them, row by row; subjects are padded to the most in a row."""
    people = max(len(sample.tokens) for sample in chosen)
    moments = torch.from_numpy(np.stack([sample.moments for sample in chosen]))
    tokens = torch.full((len(chosen), people), -1, dtype=torch.long)
    embeds = torch.zeros(len(chosen), people, chosen[0].image_embeds.shape[-1])
    masks = torch.zeros(len(chosen), people, *moments.shape[-2:])
    for row, sample in enumerate(chosen):
        count, variants = len(sample.tokens), sample.image_embeds.shape[1]
        variant = min(int(numbers.variant[row] * variants), variants - 1)
        tokens[row, :count] = torch.tensor(sample.tokens)
        embeds[row, :count] = torch.from_numpy(sample.image_embeds[:, variant].astype(np.float32))
        masks[row, :count] = torch.from_numpy(sample.masks.astype(np.float32))
    added: dict[str, Tensor] = {}
    if null_pooled is not None:
        pooled = np.stack([sample.pooled for sample in chosen if sample.pooled is not None])
        added = {"pooled": torch.from_numpy(pooled).float(), "null_pooled": null_pooled}
        added["time_ids"] = torch.tensor([sample.time_ids for sample in chosen]).float()
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
        **added,
    )


def _column(
    sample: Sample, name: str, models: Precomputer | None, seed_and_position: tuple[int, int] = (0, 0)
) -> np.ndarray:
    if (part := sample.parts.get(f"{name}.npy")) is not None:
        return decode_npy(part)
    if models is None:
        raise _lacking(name)
    picture = decode_picture(sample.parts["jpg"])
    if name == "moments":
        return models.moments([picture])[0]
    instances, subjects = decode_instances(sample.parts["instances.png"]), sample.json()["subjects"]
    crops = fresh_crops(picture, instances, subjects, models.settings, sample.key, *seed_and_position)
    return models.image_embeds(crops)[:, None]


def _text(sample: Sample, models: Precomputer | None) -> tuple[np.ndarray, np.ndarray | None]:
    """States of the caption and, of an SDXL base, its pooled text: both are one column."""
    if (part := sample.parts.get("text.npy")) is not None:
        pooled = sample.parts.get("pooled.npy")
        return decode_npy(part), None if pooled is None else decode_npy(pooled)
    if models is None:
        raise _lacking("text")
    made = models.text([str(sample.json()["caption"])])
    return made.states[0], None if made.pooled is None else made.pooled[0]


def _lacking(column: str) -> UserError:
    return UserError(f"Training needs the column {column}, which these shards lack: set shard.{column} to true.")


def _masks(instances: np.ndarray, count: int, size: tuple[int, ...]) -> Float16[np.ndarray, "S H W"]:
    """Each subject's share of every latent pixel."""
    layers = np.stack([instances == number for number in range(1, count + 1)]).astype(np.float32)
    shares: Tensor = interpolate(torch.from_numpy(layers)[None], size=tuple(size), mode="area")[0]
    return shares.numpy().astype(np.float16)
