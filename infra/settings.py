"""Every number and name that a run depends on, typed; a preset is one TOML file that lists them all.

No field here has a default, except in `ModelReference`: a preset inherits nothing, so reading one file tells the whole
run, and why each value is what it is stands beside it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from infra.errors import UserError

PRESETS = Path(__file__).parent / "presets"


def _empty_is_none(value: object) -> object:
    return None if value == "" else value  # TOML has no null


OptionalText = Annotated[str | None, BeforeValidator(_empty_is_none)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelReference(_Frozen):
    location: str = Field(
        min_length=1,
        description='"zoo:NAME" (shipped), a local folder ("/…", "./…", "~/…"), a mirror "s3://bucket/prefix" or '
        'a hub id "owner/name"',
    )
    revision: OptionalText = Field(
        default=None, description="for a hub id: the commit, 40 hex digits; for a mirror, if wanted: its files' SHA-256"
    )
    backend: str = Field(default="transformers", description="which implementation reads the files")


class ModelsSettings(_Frozen):
    base: ModelReference = Field(description="Stable Diffusion pipeline folder: the frozen prior")
    clip: ModelReference = Field(description="CLIP image and text towers: subject features, prompt consistency")
    captioner: ModelReference = Field(description="BLIP-2: one caption per photo")
    segmenter: ModelReference = Field(description="Mask2Former: people as instances")
    identity: ModelReference = Field(description="network whose embedding says whether two pictures show one person")
    faces: Literal["mtcnn"] = Field(description="face detector for photos whose source knows no faces")


class StorageSettings(_Frozen):
    root: str = Field(
        description='where shards, catalog and releases live: "" = WORKSPACE/store, a folder, or s3://bucket/prefix'
    )
    endpoint_url: OptionalText = Field(description="S3 server other than AWS's, such as MinIO's or Ceph's; \"\" = AWS")


class PaperfolkSettings(_Frozen):
    photos: Count = Field(description="training photos to draw, before any --more")
    seed: int = Field(description="the world's seed: the same seed draws the same people")
    pixels: Count = Field(description="side of a drawn photo, in pixels")
    evaluation_people: Count = Field(description="people drawn for evaluation only, never in a training photo")


class IngestSettings(_Frozen):
    source: str = Field(description='"paperfolk" or KIND:PATH of kind ffhq, celeba, fastcomposer, webdataset or folder')
    splits: list[str] = Field(description="only photos that the source puts into one of these splits; [] = all")
    pixels: Count = Field(description="side of the square picture that a sample holds, in pixels")
    min_side: Count = Field(description="a photo whose shorter side is below this is refused, in pixels")
    max_pixels: Count = Field(description="a photo of more pixels than this is refused before it is decoded")
    photos_per_shard: Count = Field(description="consecutive photos per shard: the unit of work and of retry")
    workers: Count = Field(description="actors that decode and check")


class SignatureSettings(_Frozen):
    batch_size: Count = Field(description="pictures per forward pass of CLIP's image tower, each with its mirror image")
    workers: Count = Field(description="actors, each with CLIP's image tower")


class NearDuplicateSettings(_Frozen):
    search: bool = Field(description="keep repeated photos out of training, and look for the evaluation's there")
    hash_distance: int = Field(ge=0, le=24, description="most of 64 bits in which the hashes of one photo may differ")
    cosine: Fraction = Field(description="smallest cosine of the embeddings of one photo; both must agree")


class CaptionSettings(_Frozen):
    batch_size: Count = Field(description="pictures per forward pass")
    max_new_tokens: Count = Field(description="longest caption, in tokens")
    num_beams: Count = Field(description="beams of the search; 1 = greedy")
    workers: Count = Field(description="actors, each with its own captioner")


class SegmentSettings(_Frozen):
    score_threshold: Fraction = Field(description="smallest person probability of a query that is kept")
    mask_threshold: Fraction = Field(description="smallest mask probability of a pixel that belongs to an instance")
    overlap_threshold: Fraction = Field(description="an instance that keeps less than this of its mask is dropped")
    min_area: Fraction = Field(description="smallest instance, as a fraction of the picture's area")
    face_fallback: bool = Field(description="nobody found but a face known: use the region around the face")
    batch_size: Count = Field(description="pictures per forward pass")
    workers: Count = Field(description="actors, each with its own segmenter")


class FilterSettings(_Frozen):
    """Who is no subject although a model found them; the photo goes only where nobody is left."""

    find_faces: bool = Field(
        description="while segmenting, look with MTCNN for the faces of people whose face no source tells"
    )
    need_face: bool = Field(description="a person without a face is no subject")
    min_face: float = Field(ge=0, description="smallest face, its shorter side in pixels of the sample; 0 = any")
    min_face_on_mask: Fraction = Field(description="smallest share of the face that lies on its person's mask; 0 = any")
    min_sharpness: float = Field(
        ge=0, description="smallest variance of the Laplacian of the face at 96 x 96 grey levels; 0 = any"
    )
    max_cut: Fraction = Field(
        description="largest share of a person's height (width) that runs along the left or right (upper) edge; 1 = any"
    )
    max_people: int = Field(ge=0, description="a photo of more people is refused; 0 = any number")


class BindingSettings(_Frozen):
    margin: float = Field(
        ge=0,
        description="a person is bound if every binding that gives them another word scores worse by more than this, "
        "as a sum of CLIP's cosines; 0 = the best one counts, however close",
    )


class ShardSettings(_Frozen):
    reference_pixels: Count = Field(description="side of the subject's crop given to CLIP's image tower, in pixels")
    reference_variants: Count = Field(description="differently augmented crops per subject")
    moments: bool = Field(description="precompute the VAE's moments; without them the shards cannot be trained on")
    text: bool = Field(description="precompute the caption's text states; without them training computes them anew")
    image_embeds: bool = Field(description="precompute the subjects' features; without them no training either")
    max_photos: Count = Field(description="samples per training shard; a stage's shard with more becomes several")
    max_bytes: Count = Field(description="bytes per training shard; a stage's shard with more becomes several")
    batch_size: Count = Field(description="pictures per forward pass of the VAE and of CLIP")
    workers: Count = Field(description="actors, each with VAE, text encoder and CLIP")


class TrainSettings(_Frozen):
    steps: Count = Field(description="optimisation steps")
    batch_size: Count = Field(description="samples per step over all workers together")
    workers: Count = Field(description="data-parallel processes; each takes its share of every batch")
    min_workers: int = Field(ge=0, description="where machines are lost it goes on with so many at least; 0 = all")
    micro_batch_size: int = Field(ge=0, description="samples at once on a worker; 0 = its share of a batch")
    learning_rate: float = Field(gt=0, description="AdamW: the personalization experts and the prompt MLP")
    warmup_steps: int = Field(ge=0, description="steps over which the rate rises to learning_rate")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        description="after the warm-up: stay, or fall to zero along half a cosine"
    )
    router_learning_rate_factor: float = Field(gt=0, description="routers learn at this multiple of the rate")
    lambda_router: float = Field(ge=0, description="weight of eq. 10's router loss, as a mean over pixels")
    router_blocks: Literal["middle", "all"] = Field(
        description="blocks that the router and object losses cover; the paper leaves out the first two and last three"
    )
    router_foreground: float = Field(
        ge=0, description="weight, within the router loss, of the mirror term: people are the personalization expert's"
    )
    lambda_preservation: float = Field(
        ge=0, description="weight of the background's difference from the prior's prediction; 0 saves a forward pass"
    )
    lambda_object: float = Field(ge=0, description="weight of eq. 12's object loss, as a mean over pixels")
    max_timestep: int = Field(ge=1, le=999, description="largest timestep that is trained; the schedule ends at 999")
    timestep_exponent: float = Field(
        gt=0,
        le=1,
        description="timestep = (max_timestep + 1) * u^this, rounded down, u uniform: below 1, more noisy ones",
    )
    condition_dropout: Fraction = Field(description="probability of training a sample without its condition")
    ema_decay: float = Field(ge=0, lt=1, description="decay per step of the averaged weights that are released")
    seed: int = Field(description="seed of sample order, noise, timesteps and dropout")
    checkpoint_every: Count = Field(description="steps between checkpoints: the most that a crash costs")
    keep_last: Count = Field(description="latest checkpoints that are kept until the training is finished")
    keep_every: int = Field(ge=0, description="steps whose multiples' checkpoints are kept too; 0 = none")
    warm_start: bool = Field(description="start from the release in production, where there is one")
    precision: Literal["fp32", "bf16", "fp64"] = Field(
        description="arithmetic of the forward pass; the weights stay fp32, but with fp64 (to compare runs)"
    )
    channels_last: bool = Field(description="convolutions' weights as GPUs' kernels for half precision read them")
    compile: bool = Field(description="the U-Net through torch.compile: minutes at first, quicker steps then")
    activation_checkpointing: bool = Field(description="compute activations twice: less memory, a third more work")
    fused_optimizer: bool = Field(description="AdamW as one kernel a device")
    clip_norm: float = Field(gt=0, description="largest norm of the gradient")
    bad_step: Literal["stop", "skip"] = Field(
        description="what becomes of a step whose loss or gradient is not finite, or whose loss is a spike"
    )
    spike_factor: float = Field(ge=0, description="a loss of so many times its running mean is a spike; 0 = none is")
    hang_seconds: float = Field(gt=0, description="a worker whose step takes longer is ended, and the run goes on anew")
    shuffle_shards: Count = Field(description="shards whose samples are mixed; the cache should hold twice as many")
    cache_mb: Count = Field(description="bound on a machine's copies of an object store's shards")
    loader_workers: int = Field(ge=0, description="processes that prepare a worker's batches; 0 = a thread does")
    loader_ahead: Count = Field(description="batches that are prepared ahead (of each process)")
    damaged_shards: Literal["stop", "skip"] = Field(
        description="a shard that is gone or has other bytes: stop, or look at all beforehand and do without"
    )

    @model_validator(mode="after")
    def _everybody_has_a_share(self) -> "TrainSettings":
        if self.batch_size < self.workers:
            raise ValueError(f"batch_size {self.batch_size} is less than workers {self.workers}")
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        return self


class PromptSettings(_Frozen):
    template: str = Field(
        description='the prompt, with {word} for the subject\'s word: "a photo of a {word} in the snow"'
    )
    scene: str = Field(description='the scene as a phrase of the prompt, for scene accuracy; "" = not scored')
    object: str = Field(description='the held object as a phrase of the prompt, for object accuracy; "" = not scored')

    @model_validator(mode="after")
    def _word_stands_once(self) -> "PromptSettings":
        if self.template.count("{word}") != 1 or self.template.count("{") != 1 or self.template.count("}") != 1:
            raise ValueError(f"template {self.template!r} must hold {{word}} exactly once, and no other braces")
        return self


class EvaluateSettings(_Frozen):
    source: str = Field(description='"paperfolk" or "celeba:PATH": people whose photos are never trained on')
    split: str = Field(description='only people whose photos the source puts into this split; "" = all')
    subjects: Count = Field(description="people to evaluate on")
    prompts: list[PromptSettings] = Field(min_length=1, description="each drawn for each subject and seed")
    seeds: list[int] = Field(min_length=2, description="at least two: background change is measured between seeds")
    inference_steps: Count = Field(description="UniPC steps")
    guidance_scale: float = Field(ge=1, description="classifier-free guidance; 1 = none")
    prior_only_above: int = Field(ge=0, le=1000, description="timesteps above this are drawn by the prior alone")
    keep_scene: bool = Field(description="outside the people, keep to the prior's own run, which is drawn for it too")
    batch_size: Count = Field(description="pictures drawn at once")
    workers: Count = Field(description="actors, each with the pipeline")

    @model_validator(mode="after")
    def _seeds_differ(self) -> "EvaluateSettings":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must all differ")
        return self


class PublishSettings(_Frozen):
    model: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="what the releases' model is called")
    alias: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="the name that follows releases which pass the gate")
    min_identity_gain: float = Field(description="gate: identity similarity of the release minus the prior's")
    min_scene_ratio: float = Field(ge=0, description="gate: scene accuracy divided by the prior's")
    min_object_ratio: float = Field(ge=0, description="gate: held-object accuracy divided by the prior's")
    max_background_change: float = Field(
        ge=0, description="gate: change outside the subject under a subject swap, divided by that under a seed change"
    )
    max_identity_regression: float = Field(
        ge=0, description="gate: how far identity may fall below production's release"
    )


class RaySettings(_Frozen):
    address: str = Field(description='"" = a Ray of its own on this machine; otherwise the cluster\'s address')
    num_cpus: Count = Field(description="logical CPUs that a local Ray believes in: how many actors live at once")
    gpus_per_worker: float = Field(
        ge=0, description="GPUs that each captioner, segmenter or precomputer asks for, where the cluster has any"
    )
    object_store_mb: int = Field(ge=80, description="shared memory of a local Ray, in MB")


class MonitoringSettings(_Frozen):
    prometheus_port: int = Field(
        ge=0, le=65535, description="port of every network address on which a training answers Prometheus; 0 = none"
    )


class Settings(_Frozen):
    name: str = Field(description="the preset's name")
    workspace: Path = Field(description="folder for everything that a run leaves on this machine; absolute once loaded")
    storage: StorageSettings = Field(description="object store")
    models: ModelsSettings = Field(description="the pretrained models")
    paperfolk: PaperfolkSettings = Field(description="the synthetic world")
    ingest: IngestSettings = Field(description="stage 1")
    signatures: SignatureSettings = Field(description="what photos look like, for the search for near-duplicates")
    near_duplicates: NearDuplicateSettings = Field(description="what counts as the same photo")
    caption: CaptionSettings = Field(description="stage 2")
    segment: SegmentSettings = Field(description="stage 3")
    filter: FilterSettings = Field(description="stage 4: who is no subject")
    binding: BindingSettings = Field(description="stage 4: which word is whom")
    shard: ShardSettings = Field(description="stage 4")
    train: TrainSettings = Field(description="stage 5")
    evaluate: EvaluateSettings = Field(description="stage 6")
    publish: PublishSettings = Field(description="stage 7")
    ray: RaySettings = Field(description="where heavy work runs")
    monitoring: MonitoringSettings = Field(description="who can watch a run")

    @property
    def store_root(self) -> str:
        """What `infra.storage.open_store` takes: the storage root with its default filled in."""
        return self.storage.root or str(self.workspace / "store")


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_settings(preset: str, workspace: Path | None = None, overrides: Mapping[str, str] | None = None) -> Settings:
    """Read a shipped preset by name, or any file whose path ends in .toml, and apply the overrides to it.

    An override's key is dotted ("train.steps"), its value is written as in TOML ("300", "true", "[1, 2]"); where the
    preset holds text, quotes are not needed. Raises UserError for an unknown preset or key and for a value that does
    not fit.
    """
    path = Path(preset) if preset.endswith(".toml") else PRESETS / f"{preset}.toml"
    if not path.is_file():
        raise UserError(
            f"There is no preset {preset!r}: choose {' or '.join(preset_names())}, or give a path to a .toml file."
        )
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Preset {path} is not valid TOML: {error}.") from error
    for key, text in (overrides or {}).items():
        _override(values, key, text)
    if workspace is not None:
        values["workspace"] = str(workspace)
    if isinstance(values.get("workspace"), str):
        values["workspace"] = _absolute(values["workspace"])
    for model in _tables(values.get("models")):
        if str(model.get("location", "")).startswith(("./", "../", "~")):
            model["location"] = _absolute(model["location"])
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(f"Preset {preset!r} does not fit: {_describe(error)}.") from error


def _absolute(path: str) -> str:
    """Ray's workers may stand in another folder."""
    return str(Path(path).expanduser().absolute())


def _tables(value: object) -> list[dict[str, Any]]:
    return [one for one in value.values() if isinstance(one, dict)] if isinstance(value, dict) else []


def _override(values: dict[str, Any], key: str, text: str) -> None:
    *folders, last = key.split(".")
    table: Any = values
    for folder in folders:
        table = table.get(folder) if isinstance(table, dict) else None
    if not isinstance(table, dict) or last not in table:
        table = table if isinstance(table, dict) and folders else values
        prefix = ".".join(folders) + "." if table is not values else ""
        choices = ", ".join(prefix + name for name in table)
        raise UserError(f"There is no setting {key!r}: choose one of {choices}.")
    if isinstance(table[last], dict):
        choices = ", ".join(f"{key}.{name}" for name in table[last])
        raise UserError(f"{key!r} is a group of settings: set one of {choices}.")
    table[last] = text if isinstance(table[last], str) else _parse(text)


def _parse(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the field's own check then says what was wanted


def _describe(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    first = found[0]
    where = ".".join(str(part) for part in first["loc"]) or "settings"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    value = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{where}: {message[:1].lower()}{message[1:]}{value}{more}"
