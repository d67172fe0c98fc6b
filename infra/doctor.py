"""What a preset needs of this machine, and whether it is there: looked at, never downloaded or changed."""

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from infra.backends import Backend, captioner_backends, segmenter_backends
from infra.code_version import code_name
from infra.errors import UserError
from infra.model_files import PUBLISHED, resolve
from infra.model_index import read_model_index
from infra.model_mirror import is_mirror, mirror_files, mirror_folder
from infra.ray_jobs import Away, JobServer, is_dashboard
from infra.settings import ModelReference, Settings
from infra.storage import S3Store, open_store

GB = 10**9


class _Needs(NamedTuple):
    """What a machine must have, in GB."""

    disk: int
    """For shards, checkpoints and a release."""
    memory: float
    gpu: int
    """Of each worker's; 0 = a CPU will do."""


# By the largest side of a picture, in pixels: three figures each, because the presets differ by that much.
_NEEDS = {
    128: _Needs(disk=2, memory=7.5, gpu=0),
    # Every training worker reads all samples: of 70,000 at 512 pixels they are 14 GB, for each of four workers. BLIP-2
    # with OPT 6.7b in half precision, the largest captioner, beside its batch.
    512: _Needs(disk=200, memory=64.0, gpu=40),
    # SDXL: 70,000 samples are 85 GB and a checkpoint 16 GB; each of four workers loads the base's 10 GB, and the first
    # copies checkpoints. `moa train --dry-run` counts the GPU.
    1 << 31: _Needs(disk=400, memory=128.0, gpu=80),
}


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str  # what was found, and where it is not ok, what mends it


def diagnose(settings: Settings) -> list[Check]:
    """One check per model, data source, store and machine resource; never raises for what is missing."""
    checks = [_model(kind, reference) for kind, reference in _models(settings)]
    models = settings.models
    checks.append(_backends("captioners", models.captioner.backend, captioner_backends()))
    checks.append(_backends("segmenters", models.segmenter.backend, segmenter_backends()))
    checks += [_source("ingest.source", settings.ingest.source), _source("evaluate.source", settings.evaluate.source)]
    # Where stages are sent to a cluster elsewhere, this machine only waits.
    works_here = [] if is_dashboard(settings.ray.address) else [_accelerator(settings), _memory(settings)]
    return [*checks, _storage(settings), _ray(settings), *works_here, _disk(settings)]


def _models(settings: Settings) -> Iterator[tuple[str, ModelReference]]:
    for kind in type(settings.models).model_fields:
        value = getattr(settings.models, kind)
        if isinstance(value, ModelReference):
            yield kind, value


def _backends(name: str, chosen: str, backends: Sequence[Backend]) -> Check:
    """Every implementation, usable or not; the check is about the one that the settings name."""
    told = [f"{one.name} ({one.missing or 'usable'})" for one in backends]
    usable = any(one.name == chosen and not one.missing for one in backends)
    return Check(name, usable, f"{chosen} is chosen; {', '.join(told)}")


def _model(kind: str, reference: ModelReference) -> Check:
    name = f"model {kind}"
    if not reference.location:
        return Check(name, True, f"none is chosen: models.{kind}.location names one")
    if reference.backend == "lavis":
        return Check(name, True, f"{reference.location}: LAVIS downloads it at first use, into its own cache")
    if is_mirror(reference.location) and not mirror_folder(reference.location).is_dir():
        return _mirror(name, reference.location)
    try:
        location, arguments = resolve(reference, kind)
    except UserError as error:
        return Check(name, False, str(error))
    if not arguments:
        place = Path(location)
        if kind == "base":
            try:
                read_model_index(reference)
            except UserError as error:
                return Check(name, False, str(error))
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        return Check(name, True, f"{place} ({sum(path.stat().st_size for path in files) / 1e6:.1f} MB)")
    revision = arguments["revision"]
    cached = _hub_cache() / f"models--{location.replace('/', '--')}" / "snapshots" / revision
    if cached.is_dir():
        return Check(name, True, f"{location}@{revision[:12]} is in the hub cache")
    known = f", model.safetensors with SHA-256 {PUBLISHED[location]}" if location in PUBLISHED else ""
    return Check(
        name,
        False,
        f"{location}@{revision[:12]}{known} is not in the hub cache: `hf download {location} --revision {revision}`",
    )


def _mirror(name: str, location: str) -> Check:
    try:
        files = mirror_files(location)
    except UserError as error:
        return Check(name, False, str(error))
    if not any(file.name.endswith(".safetensors") for file in files):
        return Check(name, False, f"no .safetensors under {location}: mirror the model there, or mend the address")
    size = sum(file.size for file in files)
    return Check(name, True, f"{location}: {len(files)} files, {size / GB:.1f} GB, fetched at first use")


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _source(name: str, source: str) -> Check:
    kind, _, path = source.partition(":")
    if not path:
        return Check(name, True, f"{kind} is drawn on the spot")
    if path.startswith("s3://"):
        return Check(name, True, f"{path}: looked at when the run starts")
    folder = Path(path).expanduser().absolute()
    if folder.exists():
        return Check(name, True, str(folder))
    return Check(name, False, f"no folder {folder}: place the data there or --set {name}={kind}:PATH")


def _storage(settings: Settings) -> Check:
    try:
        store = open_store(settings.store_root, settings.storage.endpoint_url)
    except UserError as error:
        return Check("storage", False, str(error))
    if not isinstance(store, S3Store):
        existing = _existing_parent(Path(settings.store_root))
        writable = os.access(existing, os.W_OK)
        return Check("storage", writable, f"{settings.store_root} {'can' if writable else 'cannot'} be written")
    return _s3(store)


def _s3(store: S3Store) -> Check:
    from boto3 import Session

    place = store.endpoint_url or "AWS"
    if Session().get_credentials() is None:
        return Check(
            "storage", False, f"{_address(store)}: no credentials for {place}, set AWS_PROFILE or AWS_ACCESS_KEY_ID"
        )
    try:
        store.list("doctor/")
    except Exception as error:  # botocore has dozens of kinds, and each is an answer here
        return Check("storage", False, str(error))
    return Check("storage", True, f"{_address(store)} on {place} answers")


def _address(store: S3Store) -> str:
    return f"s3://{store.bucket}/{store.prefix}"


def _ray(settings: Settings) -> Check:
    address = settings.ray.address
    if not address:
        return Check("ray", True, f"started here with {settings.ray.num_cpus} logical CPUs")
    if is_dashboard(address):
        return _job_server(settings)
    if address == "auto":
        running = Path("/tmp/ray/ray_current_cluster").is_file()
        return Check("ray", running, "a cluster runs here" if running else "no cluster runs here: `ray start --head`")
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=5).close()
    except OSError as error:
        return Check("ray", False, f"{address} does not answer ({error}): start the cluster or mend ray.address")
    return Check("ray", True, f"{address} answers")


def _job_server(settings: Settings) -> Check:
    address = settings.ray.address
    try:
        JobServer(address).connect()
    except Away as error:
        return Check("ray", False, f"{address} does not answer ({error}): start the cluster or mend ray.address")
    except UserError as error:
        return Check("ray", False, str(error))
    code = f"uploads {settings.ray.working_dir}" if settings.ray.working_dir else f"must have {code_name()} installed"
    shared = "" if "://" in settings.store_root else f"; every machine of it must see {settings.store_root}"
    return Check("ray", True, f"{address} takes jobs; it {code}{shared}")


def _accelerator(settings: Settings) -> Check:
    import torch

    needed = _needs(settings).gpu
    if not needed:
        return Check("accelerator", True, f"none needed for {settings.ingest.pixels}-pixel pictures")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(index).total_memory / GB for index in range(count)]
    enough = count >= settings.train.workers and min(sizes) >= needed
    found = ", ".join(f"{size:.0f} GB" for size in sizes) or "no GPU"
    wanted = f"train.workers = {settings.train.workers} wants one GPU each, of {needed} GB or more"
    return Check("accelerator", enough, f"{found} here" if enough else f"{found} here; {wanted}")


def _memory(settings: Settings) -> Check:
    total = psutil.virtual_memory().total / GB
    needed = _needs(settings).memory
    found = f"{total:.0f} GB"
    return Check("memory", total >= needed, found if total >= needed else f"{found} here: {needed:.0f} GB are needed")


def _disk(settings: Settings) -> Check:
    free = shutil.disk_usage(_existing_parent(settings.workspace)).free / GB
    needed = _needs(settings).disk
    detail = f"{free:.0f} GB free under {settings.workspace}"
    return Check("disk", free >= needed, detail if free >= needed else f"{detail}: {needed} GB are needed")


def _needs(settings: Settings) -> _Needs:
    return next(needs for side, needs in _NEEDS.items() if settings.ingest.pixels <= side)


def _existing_parent(path: Path) -> Path:
    path = path.expanduser().absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
