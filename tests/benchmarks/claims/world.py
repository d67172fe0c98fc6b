"""The data: Paperfolk's training shards, made once by the project's own stages, and people who are in none of them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from torch import Tensor, nn

from flows.evaluation_people import read_people
from flows.run import Run
from flows.training_samples import TrainingSample, training_sample
from infra.model_files import resolve
from infra.settings import Settings, load_settings
from preprocessing.catalog import load_shard
from preprocessing.precompute import Precomputer
from preprocessing.shards import read_tar
from tests.benchmarks.claims.plan import Protocol

PHOTOS, WORLD_SEED = 4000, 0  # the photos that release 1 was trained on
_PEOPLE = 24  # drawn for evaluation, men and women balanced


@dataclass(frozen=True)
class Base:
    """The frozen base model, as a training sees it."""

    unet: nn.Module
    scheduler: Any
    scaling: float
    shift: float
    null_text: Tensor


class World:
    """Everything that all arms share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.run = Run(settings)

    @classmethod
    def at(cls, folder: Path) -> "World":
        """The benchmark's world in `folder`/data; its shards are made now if they are not there."""
        overrides = {
            "paperfolk.photos": str(PHOTOS),
            "paperfolk.seed": str(WORLD_SEED),
            "paperfolk.evaluation_people": str(_PEOPLE),
        }
        world = cls(load_settings("demo", folder / "data", overrides))
        world.make_shards()
        return world

    def make_shards(self) -> None:
        """Ingest, caption, segment and shard, as `moa` does it; shards that are there are not made again."""
        if len(self.run.training_shards()) * self.settings.ingest.photos_per_shard >= self.settings.paperfolk.photos:
            return
        from flows.caption import caption
        from flows.ingest import ingest
        from flows.segment import segment
        from flows.session import machinery
        from flows.shard import shard
        from flows.world import prepare_world

        with machinery(self.settings):
            prepare_world(self.settings)
            for stage in (ingest, caption, segment, shard):
                stage(self.settings)
        self.run = Run(self.settings)

    @cached_property
    def samples(self) -> list[TrainingSample]:
        """All training samples, sorted by shard and key."""
        shards = (load_shard(self.run.store, row) for row in self.run.training_shards())
        return [training_sample(sample) for shard in shards for sample in read_tar(shard)]

    @property
    def image_dim(self) -> int:
        """Width of the subjects' features."""
        return int(self.samples[0].image_embeds.shape[-1])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.samples[0].moments.shape
        return channels // 2, height, width

    def base(self) -> Base:
        """A fresh copy of the base's U-Net, and what goes with it."""
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        where, options = resolve(self.settings.models.base, "base")
        safe: dict[str, Any] = {**options, "use_safetensors": True}
        unet = UNet2DConditionModel.from_pretrained(where, subfolder="unet", **safe)
        scheduler = DDPMScheduler.load_config(where, subfolder="scheduler", **options)
        vae = AutoencoderKL.load_config(where, subfolder="vae", **options)
        return Base(
            unet,
            scheduler,
            float(vae.get("scaling_factor", 0.18215)),
            float(vae.get("shift_factor") or 0.0),
            self._null,
        )

    @cached_property
    def _null(self) -> Tensor:
        precomputer = Precomputer(self.settings.models.base, self.settings.models.clip, self.settings.shard)
        return torch.from_numpy(precomputer.empty_text().states[0]).float()

    def people(self, protocol: Protocol) -> list[dict[str, Any]]:
        """The protocol's people, men and women in turn: {"name", "word", "photos": [PNG]}."""
        return read_people(Run(self.with_protocol(protocol)))

    def with_protocol(self, protocol: Protocol) -> Settings:
        """The settings with the protocol's people, prompts and seeds."""
        evaluate = self.settings.evaluate
        chosen = {
            "subjects": protocol.people,
            "prompts": evaluate.prompts[: protocol.prompts],
            "seeds": list(protocol.seeds),
            "pairs": 0,  # drawn apart, with prompts of their own
        }
        return self.settings.model_copy(update={"evaluate": evaluate.model_copy(update=chosen)})
