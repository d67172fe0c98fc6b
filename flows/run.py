"""What every stage of a run needs: its settings, and from them store, catalog, releases and fingerprints.

A fingerprint names how something was made. A stage's covers its settings, its model's bytes and the stages before it,
so "is this shard done?" is one look into the catalog, and a changed setting redoes exactly what depends on it.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from infra import model_files
from infra.errors import written_by_us
from infra.model_index import read_model_index
from infra.registry import Release, Releases
from infra.release_signatures import Verifier
from infra.settings import ModelReference, Settings, ShardSettings
from infra.storage import ObjectStore, open_store
from preprocessing.augmentation import in_effect
from preprocessing.catalog import Catalog, ShardRow
from preprocessing.recipes import Recipe, stage_recipe
from preprocessing.sources import Source, Surroundings, open_source

STAGES = ("ingest", "signatures", "duplicates", "caption", "segment", "shard")
# What the shard stage keeps of its costly work, and the settings that each depends on: see preprocessing/columns.py.
COLUMNS = {
    "bind": ("reference_pixels", "batch_size"),
    "moments": ("batch_size",),
    "text": ("batch_size",),
    "image_embeds": ("reference_pixels", "reference_variants", "batch_size"),
}
# The back ends whose files `model_files.resolve` finds.
_RESOLVED = ("transformers", "diffusers", "facenet", "lpips", "clip")
# What decides how a training runs, and not what comes out of it but for the order in which sums are taken.
_TRAIN_WITHOUT_EFFECT = set(
    "workers min_workers resize_seconds micro_batch_size checkpoint_every keep_last keep_every warm_start bad_step "
    "hang_seconds cache_mb loader_workers loader_ahead damaged_shards channels_last compile activation_checkpointing "
    "fused_optimizer pictures_every pictures_people pictures_prompts sharding placement gpus_per_worker collectives "
    "nccl_env".split()
)
# Settings that came later, and the value that is how it was before: a training of then has the name that it had.
_TRAIN_AS_BEFORE = {"frozen_precision": "fp32"}


@dataclass(frozen=True)
class StageResult:
    """What one stage did: shards made now and there before, the photos it refused now, and a sentence for people."""

    stage: str
    done: int
    before: int
    refused: int = 0
    seconds: float = 0.0
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Run:
    """The settings' handles, opened when first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def store(self) -> ObjectStore:
        return open_store(self.settings.store_root, self.settings.storage.endpoint_url)

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog(self.store)

    @cached_property
    def releases(self) -> Releases:
        publish = self.settings.publish
        return Releases(self.store, publish.model, Verifier(publish.verify_key) if publish.verify_key else None)

    @property
    def photos(self) -> Path:
        """Where Paperfolk's photos are written."""
        return self.settings.workspace / "photos"

    def source_spec(self, spec: str) -> str:
        """ "paperfolk" as the folder that the demo writes; any other source as it is."""
        return f"paperfolk:{self.photos / 'ffhq'}" if spec == "paperfolk" else spec

    def open_source(self, spec: str, tell: Callable[[str, float, float], None] | None = None) -> Source:
        """The source, with the workspace's cache; `tell` hears of what takes long. Raises UserError."""
        cache = self.settings.workspace / "cache"
        around = Surroundings(cache, tell) if tell else Surroundings(cache)
        return open_source(self.source_spec(spec), self.settings.storage.endpoint_url, around)

    def evaluation_spec(self) -> str:
        """The source of the people to evaluate on."""
        spec = self.settings.evaluate.source
        return f"celeba:{self.photos / 'celeba'}" if spec == "paperfolk" else spec

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """Stage or column name -> how its shards are made with these settings.

        A column's covers what its arrays depend on and no more, so that a changed setting computes anew only what it
        changes; `shard` joins them.
        """
        settings, models = self.settings, self.settings.models
        ingest = stage_recipe("ingest", settings.ingest.model_copy(update={"source": ""}), {})
        photos = {"ingest": ingest.fingerprint}
        caption = stage_recipe("caption", settings.caption, {"models.captioner": _weights(models.captioner), **photos})
        faces = {"models.faces": models.faces} if settings.filter.find_faces else {}
        segmenter = {"models.segmenter": _weights(models.segmenter), **photos, **faces}
        segment = stage_recipe("segment", settings.segment, segmenter)

        def column(name: str, inputs: Mapping[str, str]) -> Recipe:
            return stage_recipe(name, settings.shard, inputs, COLUMNS[name])

        clip = {"models.clip": _weights(models.clip)}
        searched: list[Recipe] = []
        if settings.near_duplicates.search:
            signatures = stage_recipe("signatures", settings.signatures, {**clip, **photos})
            signed = {"signatures": signatures.fingerprint}
            searched = [signatures, stage_recipe("duplicates", settings.near_duplicates, signed)]
        read = {"caption": caption.fingerprint, "segment": segment.fingerprint}
        bind = column("bind", {"models.base tokenizer": _weights(models.base, "tokenizer"), **clip, **read})
        chosen = {
            "binding": settings.binding.model_dump(),
            "filter": settings.filter.model_dump(exclude={"find_faces"}),
        }
        bind = replace(bind, settings={**bind.settings, **chosen})
        bound = {bind.stage: bind.fingerprint}
        # Of a base with one text encoder these are the first two alone.
        encoder = _weights(models.base, "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        embeds = column("image_embeds", {**clip, **bound})
        columns = [
            column("moments", {"models.base vae": _weights(models.base, "vae"), **photos}),
            column("text", {"models.base text_encoder": encoder, **bound}),
            replace(embeds, settings={**embeds.settings, **_augmentation(settings.shard)}),
        ]
        joined = [bind, *(one for one in columns if getattr(settings.shard, one.stage)), *searched[1:]]
        inputs = {one.stage: one.fingerprint for one in joined}
        shard = stage_recipe("shard", settings.shard, inputs, ("max_photos", "max_bytes"))
        return {recipe.stage: recipe for recipe in (ingest, *searched, caption, segment, bind, *columns, shard)}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Stage or column name -> fingerprint of how its shards are made with these settings."""
        return {stage: recipe.fingerprint for stage, recipe in self.recipes.items()}

    def shards(self, stage: str, version: int | None = None) -> list[ShardRow]:
        """The stage's finished shards made with these settings, sorted by name."""
        fingerprint = self.fingerprints[stage]
        return [row for row in self.catalog.shards(stage, version) if row.fingerprint == fingerprint]

    def done(self, stage: str) -> int:
        """How many of the stage's shards are finished with these settings."""
        return self.catalog.shard_frame(stage).filter(fingerprint=self.fingerprints[stage]).height

    def pending(self, stage: str, upstream: str = "ingest") -> list[ShardRow]:
        """The shards of `upstream` that the stage has yet to do."""
        return self.catalog.pending(stage, upstream, self.fingerprints[stage], self.fingerprints[upstream])

    def training_shards(self, version: int | None = None) -> list[ShardRow]:
        """What a training reads: the shard stage's shards that hold a sample."""
        return [row for row in self.shards("shard", version) if row.samples]

    def inputs_digest(self, shards: list[ShardRow]) -> str:
        """16 hex digits that name what a training learns from and how; the release that it starts from is not in it."""
        models, shard = self.settings.models, self.settings.shard
        train = self.settings.train.model_dump(mode="json", exclude=_TRAIN_WITHOUT_EFFECT)
        train = {name: value for name, value in train.items() if _TRAIN_AS_BEFORE.get(name, ...) != value}
        # Crops that are made while training are not among the contents.
        crops = {"pixels": shard.reference_pixels, "variants": shard.reference_variants, **_augmentation(shard)}
        computed = [] if shard.image_embeds else [crops]
        contents = sorted((row.shard, row.sha256) for row in shards)
        return digest(contents, train, *map(_weights, (models.base, models.clip)), *computed)

    def evaluation_fingerprint(self, people: str) -> str:
        """16 hex digits that name how a release is evaluated: equal ones can be compared. `people`: the subjects."""
        models = self.settings.models
        left_out = {"workers", "source", "split", "ip_adapter_scale"}  # the last one is a part of what is evaluated
        settings = self.settings.evaluate.model_dump(mode="json", exclude=left_out)
        # How people are found in photos and pictures, and cut out for the image encoder.
        found = self.settings.segment.model_dump(mode="json", exclude={"workers", "batch_size"})
        used = [models.base, models.clip, models.segmenter, models.identity, models.perceptual]
        used += [models.safety] if models.safety.location else []
        pixels = self.settings.shard.reference_pixels
        return digest(settings, found, pixels, people, [_weights(model) for model in used])

    def settled(self, from_scratch: bool = False) -> Release | None:
        """The release that was already made of all that the catalog holds now, its gate's decision carried out.

        from_scratch: only one that was trained from scratch counts.
        """
        shards = self.training_shards()
        if not shards:
            return None
        inputs = self.inputs_digest(shards)
        for release in reversed(self.releases.all()):
            card = self.releases.card(release)
            if card.get("inputs") != inputs or (from_scratch and card["start"] != "scratch"):
                continue
            moved = any(move.release == release for move in self.releases.history(self.settings.publish.alias))
            if moved or not card["verdict"]["promote"]:
                return release
        return None


def check_inputs(settings: Settings) -> None:
    """Raise UserError for a place, a model or a source that cannot be used, before anything is started."""
    for source in (settings.ingest.source, settings.evaluate.source):
        if source != "paperfolk":  # that one is written when it is needed
            Run(settings).open_source(source)
    for name, reference in settings.models:
        if isinstance(reference, ModelReference) and reference.location and reference.backend in _RESOLVED:
            model_files.resolve(reference, name)
    if model_files.folder_here(settings.models.base):  # else it is fetched with the model
        read_model_index(settings.models.base)
    with written_by_us(settings.workspace, "choose another --workspace"):
        settings.workspace.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=settings.workspace).close()
    open_store(settings.store_root, settings.storage.endpoint_url)


def _augmentation(settings: ShardSettings) -> dict[str, Any]:
    """What of the augmentation decides a subject's crops, as settings of the column that holds their features."""
    return {f"augmentation.{name}": value for name, value in in_effect(settings).items()}


def digest(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 of the parts as JSON."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights(reference: ModelReference, *parts: str) -> str:
    # A LAVIS model is neither a folder nor a hub id: its name and the commit of the LAVIS that runs it stand for it.
    if reference.backend == "lavis":
        return f"lavis:{reference.location}@{reference.revision}"
    return f"{reference.backend}:{model_files.fingerprint(reference, parts)}"


def describe(reference: ModelReference) -> str:
    """A model for a release's card: its name and what its weights hash to."""
    return f"{reference.location} ({_weights(reference).rpartition(':')[2][:16]})"
