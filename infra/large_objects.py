"""Objects too large for memory, in the stores of `infra.storage`: uploaded from a file, read in ranges; their age, and
what killed uploads left.

An upload to S3 is a multipart one, which not every store lets be conditional: only content-addressed objects go this
way. Killed and begun again it goes on with the parts that the server has.
"""

import os
import secrets
import shutil
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

from infra.errors import UserError
from infra.manifest import PART_BYTES, Content
from infra.multipart_upload import Advance, upload_parts
from infra.s3_reading import S3Object, S3ReadError, read_into
from infra.steady_file import steady
from infra.storage import PARTIAL, DirectoryStore, ObjectStore, S3Store

_UPLOADS = 3  # begun at most for one object: another publisher may end or abandon ours


@dataclass(frozen=True)
class StoredObject:
    """size in bytes; written: by the store's clock, in seconds since 1970."""

    size: int
    written: float


@dataclass(frozen=True)
class Unfinished:
    """What an upload left that never ended; `handle` is for `abandon`."""

    key: str
    begun: float
    handle: str


class UnreadableObject(OSError):
    """An object has another size than was said, or its bytes do not come. It says why."""


class LargeObjects(Protocol):
    """What the two kinds of store can do with large objects."""

    def find(self, key: str) -> StoredObject | None:
        """Size and age of an object; None where there is none."""
        ...

    def entries(self, prefix: str) -> dict[str, StoredObject]:
        """All objects whose keys start with the prefix."""
        ...

    def read_into(self, key: str, start: int, buffer: memoryview, whole: int) -> None:
        """Fill the buffer from `start` on, of an object of `whole` bytes. KeyError where there is none;
        UnreadableObject."""
        ...

    def upload(self, key: str, path: Path, content: Content, advance: Advance) -> None:
        """Write the file, which the content describes, as an object, there whole or not at all; `advance` hears of
        bytes that are done.

        Raises UserError where the file has another size or changes meanwhile.
        """
        ...

    def clock(self) -> float:
        """The store's time, in seconds since 1970."""
        ...

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """Uploads below the prefix that never ended."""
        ...

    def abandon(self, upload: Unfinished) -> None:
        """Remove what such an upload left."""
        ...

    def require_creates_once(self, key: str) -> None:
        """Raise UserError where the store does not honour "create only if absent"; `key` is written and deleted."""
        ...


def large_objects(store: ObjectStore) -> LargeObjects:
    """The store's."""
    if isinstance(store, S3Store):
        return _Bucket(store)
    assert isinstance(store, DirectoryStore)
    return _Directory(store)


def read_range(large: LargeObjects, key: str, start: int, size: int, whole: int) -> bytes:
    """Exactly these bytes of an object of `whole` bytes. KeyError where there is none; UnreadableObject."""
    buffer = bytearray(size)
    large.read_into(key, start, memoryview(buffer), whole)
    return bytes(buffer)


def download(store: ObjectStore, key: str, path: Path) -> None:
    """Copy an object, however large, into a new file. KeyError where there is none; else the store's own errors."""
    if isinstance(store, DirectoryStore):
        try:
            shutil.copyfile(store.uri(key), path)
        except FileNotFoundError as error:
            if store.exists(key):
                raise
            raise KeyError(key) from error
        return
    assert isinstance(store, S3Store)
    from botocore.exceptions import ClientError

    try:
        store.client.download_file(store.bucket, store.name(key), str(path))
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise KeyError(key) from error
        raise


def local_file(store: ObjectStore, key: str, folder: Path) -> Path:
    """The object as a file: its own in a directory, else fetched into `folder`. KeyError where there is none."""
    if isinstance(store, DirectoryStore):
        if not store.exists(key):
            raise KeyError(key)
        return Path(store.uri(key))
    path = folder / key.rpartition("/")[2]
    download(store, key, path)
    return path


class _Directory:
    def __init__(self, store: DirectoryStore) -> None:
        self._store = store

    def find(self, key: str) -> StoredObject | None:
        try:
            status = os.stat(self._store.uri(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return StoredObject(status.st_size, status.st_mtime)

    def entries(self, prefix: str) -> dict[str, StoredObject]:
        found = ((key, self.find(key)) for key in self._store.list(prefix))
        return {key: one for key, one in found if one is not None}

    def read_into(self, key: str, start: int, buffer: memoryview, whole: int) -> None:
        try:
            with open(self._store.uri(key), "rb", buffering=0) as file:
                there = os.fstat(file.fileno()).st_size
                came = os.preadv(file.fileno(), [buffer], start) if there == whole else 0
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise KeyError(key) from error
        if there != whole or came != len(buffer):
            raise UnreadableObject(f"it has {there:,} bytes in place of {whole:,}")

    def upload(self, key: str, path: Path, content: Content, advance: Advance) -> None:
        target = Path(self._store.uri(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
        try:
            with steady(path, content.size) as source, partial.open("xb", buffering=0) as file:
                while piece := source.read(PART_BYTES):
                    file.write(piece)
                    advance(len(piece))
                os.fsync(file.fileno())  # the name must not survive a power cut that the bytes did not
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def clock(self) -> float:
        root = self._store.root
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f"{PARTIAL}{secrets.token_hex(8)}"
        try:
            probe.touch()  # another machine's disk goes by that machine's clock
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def unfinished(self, prefix: str) -> list[Unfinished]:
        found = []
        for path in sorted((self._store.root / prefix).rglob(f"{PARTIAL}*")):
            key = path.relative_to(self._store.root).as_posix()
            found.append(Unfinished(key, path.stat().st_mtime, str(path)))
        return found

    def abandon(self, upload: Unfinished) -> None:
        Path(upload.handle).unlink(missing_ok=True)

    def require_creates_once(self, key: str) -> None:
        pass  # a link never replaces


class _Bucket:
    def __init__(self, store: S3Store) -> None:
        self._store = store

    def find(self, key: str) -> StoredObject | None:
        from botocore.exceptions import ClientError

        try:
            head = self._store.client.head_object(Bucket=self._store.bucket, Key=self._store.name(key))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return StoredObject(int(head["ContentLength"]), head["LastModified"].timestamp())

    def entries(self, prefix: str) -> dict[str, StoredObject]:
        pages = self._store.client.get_paginator("list_objects_v2")
        start = len(self._store.name("x")) - 1
        found = {}
        for page in pages.paginate(Bucket=self._store.bucket, Prefix=self._store.name("x")[:-1] + prefix):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):  # by which others mark folders
                    found[item["Key"][start:]] = StoredObject(int(item["Size"]), item["LastModified"].timestamp())
        return found

    def read_into(self, key: str, start: int, buffer: memoryview, whole: int) -> None:
        store = self._store
        try:
            read_into(S3Object(store.bucket, store.name(key), whole, "", store.endpoint_url), start, buffer)
        except S3ReadError as error:
            if error.kind == "missing":
                raise KeyError(key) from error
            raise UnreadableObject(str(error)) from error

    def upload(self, key: str, path: Path, content: Content, advance: Advance) -> None:
        if not content.parts:
            with steady(path, content.size) as file:
                data = file.readall()
            self._store.put(key, data)
            return advance(content.size)
        done: set[int] = set()
        for _ in range(_UPLOADS):
            if upload_parts(self._store, key, path, content, advance, done):
                return
            there = self.find(key)
            if there is not None and there.size == content.size:
                return  # another publisher has put the same bytes there
        raise UserError(f"The upload of {self._store.uri(key)} was ended by others {_UPLOADS} times: publish again.")

    def clock(self) -> float:
        answer = self._store.client.list_objects_v2(Bucket=self._store.bucket, Prefix=self._store.prefix, MaxKeys=1)
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def unfinished(self, prefix: str) -> list[Unfinished]:
        start = self._store.name("x")[:-1]
        return [
            Unfinished(one["Key"][len(start) :], one["Initiated"].timestamp(), str(one["UploadId"]))
            for one in self._store.running_uploads(start + prefix)
        ]

    def abandon(self, upload: Unfinished) -> None:
        client, name = self._store.client, self._store.name(upload.key)
        try:
            client.abort_multipart_upload(Bucket=self._store.bucket, Key=name, UploadId=upload.handle)
        except client.exceptions.NoSuchUpload:
            pass  # it has ended

    def require_creates_once(self, key: str) -> None:
        first, second = self._store.create(key, b"1"), self._store.create(key, b"2")
        self._store.delete(key)
        if not first or second:
            raise UserError(
                f"The store s3://{self._store.bucket}/{self._store.prefix} puts a new object in an old one's place "
                "though it is asked not to (If-None-Match), so that releases could be confused: use a server that "
                "honours it, on Ceph a bucket without versioning."
            )
