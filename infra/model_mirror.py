"""Models kept in an object store: `s3://bucket/prefix` as a model's location, fetched once into a cache here.

Only what cannot run code is fetched: safetensors and texts. Every file is checked against the store's size and digest,
and against the mirror's own `SHA256SUMS` where it has one. Server and credentials come from the usual AWS variables
(`AWS_ENDPOINT_URL_S3` for a server that is not AWS's).
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.storage import check_key

CACHE = "MOA_MODEL_CACHE"
SUMS = "SHA256SUMS"
_KINDS = (".safetensors", ".json", ".txt", ".model", ".jinja", ".yaml", ".md", SUMS)
_MD5 = re.compile(r"[0-9a-f]{32}")  # the ETag of an object that was uploaded in one piece


@dataclass(frozen=True)
class RemoteFile:
    """One file of a mirror: its path under the prefix, size in bytes and ETag."""

    name: str
    size: int
    etag: str


def is_mirror(location: str) -> bool:
    """Whether a model's location names an object store."""
    return location.startswith("s3://")


def mirror_folder(location: str) -> Path:
    """Where the model is once it is fetched: a folder below MOA_MODEL_CACHE, or below ~/.cache/moa/models."""
    root = Path(os.environ.get(CACHE) or Path("~/.cache/moa/models").expanduser())
    name = re.sub(r"[^\w.-]+", "-", location.removeprefix("s3://")).strip("-.")[-60:]
    return root / f"{name}-{hashlib.sha256(location.rstrip('/').encode()).hexdigest()[:12]}"


def fetch_mirror(location: str) -> Path:
    """The folder with the mirror's files, fetched if it is not there yet; a second process waits for the first.

    Interrupted and called again, it goes on with the file at which it was. UserError where the store cannot be read or
    a file is not what it should be.
    """
    folder = mirror_folder(location)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not folder.is_dir():
            part = folder.with_name(f"{folder.name}.part")
            part.mkdir(exist_ok=True)
            client, bucket, prefix = _connect(location)
            with _explained(location):
                files = _listed(client, bucket, prefix)
                if not any(file.name.endswith(".safetensors") for file in files):
                    raise UserError(f"There are no .safetensors under {location}: mirror the model there, or mend it.")
                _download(client, bucket, prefix, files, part)
            _check_sums(location, part)
            os.replace(part, folder)
    return folder


def mirror_files(location: str) -> list[RemoteFile]:
    """What would be fetched, largest first; UserError where the store cannot be read."""
    client, bucket, prefix = _connect(location)
    with _explained(location):
        return sorted(_listed(client, bucket, prefix), key=lambda file: -file.size)


def _connect(location: str) -> tuple[Any, str, str]:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"The model location {location!r} names no bucket: write s3://bucket/prefix.")
    config = Config(
        retries={"max_attempts": 5, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.client("s3", config=config), bucket, prefix.strip("/")
    except (BotoCoreError, ValueError) as error:
        raise _unreadable(location, error) from error


def _listed(client: Any, bucket: str, prefix: str) -> list[RemoteFile]:
    start = f"{prefix}/" if prefix else ""
    files = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
        for item in page.get("Contents", []):
            name = item["Key"][len(start) :]
            if name.endswith(_KINDS):
                check_key(name)  # nothing is written outside the cache
                files.append(RemoteFile(name, int(item["Size"]), str(item.get("ETag", "")).strip('"')))
    return files


def _download(client: Any, bucket: str, prefix: str, files: list[RemoteFile], part: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("  {task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for file in files:
            target = part / file.name
            if target.is_file() and target.stat().st_size == file.size:
                continue  # of an earlier attempt, which checked it
            task = progress.add_task(file.name, total=file.size)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            key = f"{prefix}/{file.name}" if prefix else file.name
            digest = hashlib.md5(usedforsecurity=False)
            with partial.open("wb") as out:
                for piece in client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1 << 20):
                    out.write(piece)
                    digest.update(piece)
                    progress.advance(task, len(piece))
            size = partial.stat().st_size
            if size != file.size or (_MD5.fullmatch(file.etag) and digest.hexdigest() != file.etag):
                partial.unlink()
                raise UserError(f"{file.name} of s3://{bucket}/{prefix} came damaged ({size} bytes): start again.")
            os.replace(partial, target)


def _check_sums(location: str, part: Path) -> None:
    """The mirror's own list, as `sha256sum` writes it; a file that it lists must be there and be that file."""
    sums = part / SUMS
    if not sums.is_file():
        return
    for name, wanted in _read_sums(sums.read_text("utf-8", "replace")).items():
        file = part / name
        if not name.endswith(_KINDS) or name == SUMS:
            continue
        if not file.is_file():
            raise UserError(f"{SUMS} of {location} lists {name}, which is not there: mirror the whole model.")
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != wanted:
            shutil.rmtree(part)
            raise UserError(f"{name} of {location} is not the file that {SUMS} lists: mirror it again.")


def _read_sums(text: str) -> Mapping[str, str]:
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", line)
        if match and ".." not in match[2].split("/") and not match[2].startswith("/"):
            found[match[2]] = match[1]
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the lock goes with its process."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(location: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, ValueError) as error:
        raise _unreadable(location, error) from error


def _unreadable(location: str, error: Exception) -> UserError:
    return UserError(
        f"The model at {location} cannot be read ({' '.join(str(error).split())[:200]}): mend the address, the AWS "
        "credentials or AWS_ENDPOINT_URL_S3."
    )
