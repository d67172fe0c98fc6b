"""Every number and name that a run depends on, typed; a preset is one TOML file that lists them all.

No field here has a default, except in `ModelReference`: a preset inherits nothing, so reading one file tells the whole
run, and why each value is what it is stands beside it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from infra.augmentation_settings import AugmentationSettings
from infra.errors import UserError
from infra.evaluation_settings import EvaluateSettings, RegressionSettings
from infra.service_settings import ServiceSettings
from infra.settings_fields import Count, Fraction, FrozenSettings, OptionalText
from infra.train_settings import TrainSettings as TrainSettings

PRESETS = Path(__file__).parent / "presets"


class ModelReference(FrozenSettings):
    location: str = Field(
        min_length=1,
        description='"zoo:NAME" (shipped), a local folder ("/…", "./…", "~/…"), a mirror "s3://bucket/prefix" or '
        'a hub id "owner/name"',
    )
    revision: OptionalText = Field(
        default=None, description="for a hub id: the commit, 40 hex digits; for a mirror, if wanted: its files' SHA-256"
    )
    backend: str = Field(default="transformers", description="which implementation reads the files")


class OptionalModelReference(ModelReference):
    location: str = Field(description='as every model\'s; "" = none')


class ModelsSettings(FrozenSettings):
    base: ModelReference = Field(description="pipeline folder of Stable Diffusion 1, 2 or XL: the frozen prior")
    clip: ModelReference = Field(description="CLIP image and text towers: subject features, prompt consistency")
    captioner: ModelReference = Field(description="BLIP-2: one caption per photo")
    segmenter: ModelReference = Field(description="Mask2Former: people as instances")
    identity: ModelReference = Field(description="network whose embedding says whether two pictures show one person")
    perceptual: ModelReference = Field(
        description='distance of two pictures, for variation over seeds: backend "lpips", or "clip" for a CLIP\'s'
    )
    safety: OptionalModelReference = Field(description="Stable Diffusion's safety checker, as the gate asks it")
    faces: Literal["mtcnn"] = Field(description="face detector for photos whose source knows no faces")


class StorageSettings(FrozenSettings):
    root: str = Field(
        description='where shards, catalog and releases live: "" = WORKSPACE/store, a folder, or s3://bucket/prefix'
    )
    endpoint_url: OptionalText = Field(description="S3 server other than AWS's, such as MinIO's or Ceph's; \"\" = AWS")


class PaperfolkSettings(FrozenSettings):
    photos: Count = Field(description="training photos to draw, before any --more")
    seed: int = Field(description="the world's seed: the same seed draws the same people")
    pixels: Count = Field(description="side of a drawn photo, in pixels")
    evaluation_people: Count = Field(description="people drawn for evaluation only, never in a training photo")


class IngestSettings(FrozenSettings):
    source: str = Field(description='"paperfolk" or KIND:PATH of kind ffhq, celeba, fastcomposer, webdataset or folder')
    license: str = Field(description='of photos that bring no licence of their own; "" = none is known')
    consent: str = Field(
        description='what the people shown agreed to and where that is kept, of photos that do not say; "" = not known'
    )
    splits: list[str] = Field(description="only photos that the source puts into one of these splits; [] = all")
    pixels: Count = Field(description="side of the square picture that a sample holds, in pixels")
    min_side: Count = Field(description="a photo whose shorter side is below this is refused, in pixels")
    max_pixels: Count = Field(description="a photo of more pixels than this is refused before it is decoded")
    photos_per_shard: Count = Field(description="consecutive photos per shard: the unit of work and of retry")
    workers: Count = Field(description="actors that decode and check")


class SignatureSettings(FrozenSettings):
    batch_size: Count = Field(description="pictures per forward pass of CLIP's image tower, each with its mirror image")
    workers: Count = Field(description="actors, each with CLIP's image tower")


class NearDuplicateSettings(FrozenSettings):
    search: bool = Field(description="keep repeated photos out of training, and look for the evaluation's there")
    hash_distance: int = Field(ge=0, le=24, description="most of 64 bits in which the hashes of one photo may differ")
    cosine: Fraction = Field(description="smallest cosine of the embeddings of one photo; both must agree")


class CaptionSettings(FrozenSettings):
    batch_size: Count = Field(description="pictures per forward pass")
    max_new_tokens: Count = Field(description="longest caption, in tokens")
    num_beams: Count = Field(description="beams of the search; 1 = greedy")
    workers: Count = Field(description="actors, each with its own captioner")


class SegmentSettings(FrozenSettings):
    score_threshold: Fraction = Field(description="smallest person probability of a query that is kept")
    mask_threshold: Fraction = Field(description="smallest mask probability of a pixel that belongs to an instance")
    overlap_threshold: Fraction = Field(description="an instance that keeps less than this of its mask is dropped")
    min_area: Fraction = Field(description="smallest instance, as a fraction of the picture's area")
    face_fallback: bool = Field(description="nobody found but a face known: use the region around the face")
    batch_size: Count = Field(description="pictures per forward pass")
    workers: Count = Field(description="actors, each with its own segmenter")


class FilterSettings(FrozenSettings):
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


class BindingSettings(FrozenSettings):
    margin: float = Field(
        ge=0,
        description="a person is bound if every binding that gives them another word scores worse by more than this, "
        "as a sum of CLIP's cosines; 0 = the best one counts, however close",
    )


class ShardSettings(FrozenSettings):
    reference_pixels: Count = Field(description="side of the subject's crop given to CLIP's image tower, in pixels")
    reference_variants: Count = Field(description="differently augmented crops per subject; 1 = the plain one alone")
    augmentation: AugmentationSettings = Field(description="how the crops differ")
    moments: bool = Field(description="precompute the VAE's moments; without them training computes them anew")
    text: bool = Field(
        description="precompute the caption's text states, SDXL's pooled text with them; without, training does it anew"
    )
    image_embeds: bool = Field(description="the subjects' features; else training makes them, of other crops each time")
    max_photos: Count = Field(description="samples per training shard; a stage's shard with more becomes several")
    max_bytes: Count = Field(description="bytes per training shard; a stage's shard with more becomes several")
    batch_size: Count = Field(description="pictures per forward pass of the VAE and of CLIP")
    workers: Count = Field(description="actors, each with VAE, text encoder and CLIP")


class PublishSettings(FrozenSettings):
    model: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="what the releases' model is called")
    alias: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="the name that follows releases which pass the gate")
    signing_key: str = Field(description='file of the private key that signs releases; "" = they are not signed')
    verify_key: str = Field(
        description='file of the public key that must have signed what is pulled or read; "" = digests alone'
    )
    min_identity_gain: float = Field(description="gate: identity similarity of the release minus the prior's")
    min_scene_ratio: float = Field(ge=0, description="gate: scene accuracy divided by the prior's")
    min_object_ratio: float = Field(ge=0, description="gate: held-object accuracy divided by the prior's")
    max_background_change: float = Field(
        ge=0, description="gate: change outside the subject under a subject swap, divided by that under a seed change"
    )
    min_people_found: Fraction = Field(description="gate: pictures in which the segmenter finds somebody")
    min_faces_found: Fraction = Field(description="gate: pictures in which identity finds somebody to compare")
    max_flagged: Fraction = Field(description="gate: pictures that the safety checker flags; without one, not asked")
    max_regression: RegressionSettings = Field(description="gate: how much worse than production's release")


class RaySettings(FrozenSettings):
    address: str = Field(
        description='"" = a Ray of its own on this machine; "auto" or HOST:PORT = the cluster that this machine is in; '
        '"http://HOST:8265" = a cluster elsewhere, to which the stages are sent as jobs'
    )
    working_dir: str = Field(
        description='for jobs: a copy of this project to upload; "" = the cluster has it installed'
    )
    environment: list[str] = Field(description="for jobs: variables of this machine that they get, as credentials")
    num_cpus: Count = Field(description="logical CPUs that a local Ray believes in: how many actors live at once")
    gpus_per_worker: float = Field(
        ge=0, description="GPUs that each captioner, segmenter or precomputer asks for, where the cluster has any"
    )
    object_store_mb: int = Field(ge=80, description="shared memory of a local Ray, in MB")


class MonitoringSettings(FrozenSettings):
    prometheus_port: int = Field(
        ge=0, le=65535, description="port of every network address on which a training answers Prometheus; 0 = none"
    )


class Settings(FrozenSettings):
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
    service: ServiceSettings = Field(description="retraining by itself, and who is told what")

    @property
    def service_home(self) -> Path:
        """Where `moa up` keeps what it needs: state, logs, passwords, databases."""
        return self.workspace / "service"

    @property
    def watch_folder(self) -> Path:
        """Where the watcher keeps what it knows; one file for each place."""
        return self.workspace / "watch"

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
    for group in _tables({"publish": values.get("publish")}):
        group |= {name: _absolute(group[name]) for name in ("signing_key", "verify_key") if group.get(name)}
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
