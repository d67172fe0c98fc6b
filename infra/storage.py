"""Objects by key, in a directory or on S3, behind one small interface.

Everything atomic in the project is built on one primitive: *create this small object only if it is absent*. A
directory does it with a link, S3 with a plain PutObject and `If-None-Match: *` (multipart uploads do not honour it
everywhere).
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from infra.errors import UserError

# An object's bytes, whole or in pieces in a row.
Pieces = bytes | Sequence[bytes]
Key = str | Callable[[], str]

_PIECES_AT_ONCE = 512  # Linux takes 1024
_ONE_PUT = 256 * 2**20  # bytes; S3 takes 5 GiB at once, and several parts at a time are faster
_ATTEMPTS = 4  # at an object's body; botocore counts its own for the request
PARTIAL = ".partial-"  # prefix of files being written; no key may have a part that starts so
# Delta and Prefect's database take a folder's path for an address, in which these mean something else.
_NOT_IN_A_PATH = re.compile(r"[\x00-\x1f\[\]^|?\\]|%[0-9A-Fa-f]{2}")


@runtime_checkable
class ObjectStore(Protocol):
    """Keys are relative POSIX paths such as "shards/ingest/0123.tar"; a bad key raises ValueError."""

    def get(self, key: str, most: int | None = None) -> bytes:
        """The object's bytes; KeyError when there is none, TooLarge when it has more than `most`."""
        ...

    def put(self, key: Key, data: Pieces) -> None:
        """Write or replace; a reader sees the old object or the new one, never a part.

        A key that is a function is asked for once the bytes are written: the digest in it is computed meanwhile.
        """
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write only if absent, atomically; False when the object was there, which then stays as it was."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with the prefix (a plain string: end it with "/" to name a folder), sorted."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The keys of `list`, each with its object's size in bytes."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""
        ...

    def sweep(self, folder: str) -> None:
        """Remove what killed writers left half-written in a folder. Nobody may be writing there."""
        ...

    def uri(self, key: str) -> str:
        """The object's address for people and logs."""
        ...

    def delta_uri(self, name: str) -> str:
        """Address of the Delta table of that name, for deltalake and polars."""
        ...

    def delta_options(self) -> dict[str, str]:
        """Storage options that go with `delta_uri`."""
        ...


class TooLarge(ValueError):
    """An object has more bytes than are wanted in memory."""


class StoreUnreachable(UserError):
    """Nobody answers where the store should be."""


def open_store(root: str, endpoint_url: str | None = None, attempts: int = 5) -> ObjectStore:
    """A directory's path or "s3://bucket/prefix"; `attempts` at each request to S3.

    UserError for any other scheme, an S3 address without a bucket, and a path that a Delta table cannot have.
    """
    scheme, separator, rest = root.partition("://")
    if not separator:
        if strange := _NOT_IN_A_PATH.search(str(Path(root).expanduser().absolute())):
            raise UserError(f"No store can be kept in {root!r}, whose path holds {strange[0]!r}: name another folder.")
        return DirectoryStore(Path(root))
    if scheme != "s3":
        raise UserError(f"Storage root {root!r} is neither a folder nor s3://bucket/prefix: mend storage.root.")
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise UserError(f"Storage root {root!r} names no bucket: write s3://bucket/prefix in storage.root.")
    return S3Store(bucket, prefix.strip("/"), endpoint_url, attempts)


@contextmanager
def explained(store: ObjectStore) -> Iterator[None]:
    """What an S3 server or the way to it refuses in the block, as a UserError."""
    if not isinstance(store, S3Store):
        yield
        return
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise store.refusal(error) from error


def check_key(key: str) -> str:
    """The key itself when it is safe to join to a root; ValueError otherwise."""
    parts = key.split("/")
    if not all(re.fullmatch(r"[^\x00-\x1f\\]+", part) and part not in (".", "..") for part in parts):
        raise ValueError(f"object key {key!r} is not a plain relative path")
    if any(part.startswith(PARTIAL) for part in parts):
        raise ValueError(f"object key {key!r} uses the name of an unfinished file")
    return key


class DirectoryStore:
    """Objects as files under a folder, which is created on first write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()

    def get(self, key: str, most: int | None = None) -> bytes:
        try:
            with self._path(key).open("rb") as file:
                _check_size(key, os.fstat(file.fileno()).st_size, most)
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyError(key) from error

    def put(self, key: Key, data: Pieces) -> None:
        if isinstance(key, str):
            path = self._path(key)
            partial = self._write_beside(path, data)
        else:
            partial = self._write_beside(self.root / "unnamed", data)
            path = self._path(key())
            path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, path)
        _sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        if path.exists():
            return False
        partial = self._write_beside(path, data)
        try:
            os.link(partial, path)  # unlike a rename, a link never replaces
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        _sync_folder(path.parent)
        return True

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        keys = []
        for where, _, names in os.walk(start):
            relative = Path(where).relative_to(self.root)
            keys += [(relative / name).as_posix() for name in names if not name.startswith(PARTIAL)]
        return sorted(key for key in keys if key.startswith(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        return {key: self._path(key).stat().st_size for key in self.list(prefix)}

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def sweep(self, folder: str) -> None:
        for partial in self._path(folder).rglob(f"{PARTIAL}*"):
            partial.unlink(missing_ok=True)

    def uri(self, key: str) -> str:
        return str(self._path(key))

    def delta_uri(self, name: str) -> str:
        path = self._path(name)
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def delta_options(self) -> dict[str, str]:
        return {}

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _write_beside(self, path: Path, data: Pieces) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f"{PARTIAL}{secrets.token_hex(8)}"
        try:
            with partial.open("xb", buffering=0) as file:
                _write_all(file.fileno(), [data] if isinstance(data, bytes) else data)
                os.fsync(file.fileno())  # the name must not survive a power cut that the bytes did not
        except OSError as error:
            partial.unlink(missing_ok=True)  # on a full disk what does not fit must not take up the rest as well
            error.filename = str(path)  # the system names none where it is given a number
            raise
        return partial


class S3Store:
    """Objects under a prefix of an S3 bucket; credentials and region come from the usual AWS settings.

    The first use raises UserError where the bucket cannot be listed: no such bucket, no credentials, no answer. A copy
    of it in another process does not ask: what was there once is away for a while, which is no mistake of the user's.
    """

    def __init__(self, bucket: str, prefix: str = "", endpoint_url: str | None = None, attempts: int = 5) -> None:
        self.bucket, self.prefix, self.endpoint_url, self.attempts = bucket, prefix, endpoint_url, attempts
        self._client: Any = None
        self._reached = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}  # clients do not travel between processes

    def get(self, key: str, most: int | None = None) -> bytes:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        name = self.name(key)
        client = self._connect()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = client.get_object(Bucket=self.bucket, Key=name)
            except client.exceptions.NoSuchKey as error:
                raise KeyError(key) from error
            try:
                _check_size(key, answer["ContentLength"], most)
                return bytes(answer["Body"].read())
            except (HTTPClientError, IncompleteReadError):  # it broke off
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def put(self, key: Key, data: Pieces) -> None:
        body = data if isinstance(data, bytes) else b"".join(data)
        name = self.name(key if isinstance(key, str) else key())
        if len(body) > _ONE_PUT:
            return self._connect().upload_fileobj(BytesIO(body), self.bucket, name)
        self._connect().put_object(Bucket=self.bucket, Key=name, Body=body)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._connect().put_object(Bucket=self.bucket, Key=self.name(key), Body=data, IfNoneMatch="*")
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412:
                return False
            if status == 409:  # another conditional write was under way on the key; the same answer, "not you"
                return self.create(key, data)
            raise
        return True

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._connect().head_object(Bucket=self.bucket, Key=self.name(key))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        return True

    def list(self, prefix: str = "") -> list[str]:
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        if folder := prefix.rpartition("/")[0]:
            check_key(folder)
        start = f"{self.prefix}/" if self.prefix else ""
        pages = self._connect().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start + prefix)
        found = ((item["Key"][len(start) :], item["Size"]) for page in pages for item in page.get("Contents", []))
        return dict(sorted(one for one in found if not one[0].endswith("/")))  # which is how others mark folders

    def delete(self, key: str) -> None:
        self._connect().delete_object(Bucket=self.bucket, Key=self.name(key))

    def sweep(self, folder: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(ClientError, BotoCoreError):  # servers, and rights, without such lists; the next sweep comes
            for one in self.running_uploads(f"{self.name(folder)}/"):
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=one["Key"], UploadId=one["UploadId"])

    def running_uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Those below a prefix of whole names that were begun and never ended, as S3 lists them."""
        for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix):
            yield from page.get("Uploads", [])

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.name(key)}"

    def delta_uri(self, name: str) -> str:
        return self.uri(name)

    def delta_options(self) -> dict[str, str]:
        options = {"conditional_put": "etag"}
        if self.endpoint_url:
            options["AWS_ENDPOINT_URL"] = self.endpoint_url
            options["AWS_ALLOW_HTTP"] = "true" if self.endpoint_url.startswith("http://") else "false"
        return options

    @property
    def client(self) -> Any:
        """boto3's, connected."""
        return self._connect()

    def name(self, key: str) -> str:
        """The object's whole name in the bucket."""
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    @property
    def server(self) -> str:
        """The server's address; "AWS" where none is set."""
        named = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        return self.endpoint_url or next(filter(None, named), "AWS")

    def refusal(self, error: Exception) -> UserError:
        """botocore's error in one sentence; StoreUnreachable where nobody answered."""
        from botocore.exceptions import ConnectionClosedError, ConnectTimeoutError, EndpointConnectionError

        away = isinstance(error, (EndpointConnectionError, ConnectTimeoutError, ConnectionClosedError))
        place = f"s3://{self.bucket}/{self.prefix} on {self.server}"
        code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code")
        mend = "mend storage.root, storage.endpoint_url or the AWS credentials"
        if code == "RequestTimeTooSkewed":
            mend = "this machine's clock is not the server's, so set it"
        return (StoreUnreachable if away else UserError)(
            f"The store {place} cannot be used ({' '.join(str(error).split())}): {mend}."
        )

    def _connect(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError

            config = Config(
                retries={"max_attempts": self.attempts, "mode": "standard"},
                # Ceph and older servers refuse the newer checksum trailers; our own SHA-256 checks what matters.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            try:
                client = boto3.client("s3", endpoint_url=self.endpoint_url, config=config)
                if not self._reached:
                    client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
            except (BotoCoreError, ClientError, ValueError) as error:
                raise self.refusal(error) from error
            self._client, self._reached = client, True
        return self._client


def _write_all(file: int, pieces: Sequence[bytes]) -> None:
    """Many pieces with few calls and without a copy: a shard has thousands of small ones."""
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        some = pieces[start : start + _PIECES_AT_ONCE]
        written, whole = os.writev(file, some), sum(map(len, some))
        while written < whole:  # a signal, or more than 2 GB
            written += os.write(file, b"".join(some)[written:])


def _check_size(key: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise TooLarge(f"{key} has {size:,} bytes, and {most:,} are the most that is read")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
