"""Objects too large for memory, in the stores of `infra.storage`: uploaded from a file, read in ranges; their age, and
what killed uploads left.

An upload to S3 is a multipart one, which not every store lets be conditional: only content-addressed objects go this
way. Killed and begun again it goes on with the parts that the server has.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from infra.errors import UserError
from infra.s3_reading import S3Object, S3ReadError, read_into
from infra.storage import PARTIAL, DirectoryStore, ObjectStore, S3Store

_PIECE = 16 * 2**20  # S3 allows 10,000 of them and none below 5 MiB
_THREADS = 8
_UPLOADS = 3  # begun at most for one object: another publisher may end or abandon ours
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
Advance = Callable[[int], None]


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

    def upload(self, key: str, path: Path, advance: Advance) -> None:
        """Write the file's bytes as an object, there whole or not at all; `advance` hears of bytes that are done.

        Raises UserError where the file changes meanwhile.
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


def local_file(store: ObjectStore, key: str, folder: Path) -> Path:
    """The object as a file: its own in a directory, else fetched into `folder`. KeyError where there is none."""
    if isinstance(store, DirectoryStore):
        if not store.exists(key):
            raise KeyError(key)
        return Path(store.uri(key))
    large, path = large_objects(store), folder / key.rpartition("/")[2]
    there = large.find(key)
    if there is None:
        raise KeyError(key)
    whole = there.size
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(_THREADS) as pool:

        def bring(start: int) -> None:
            os.pwrite(file.fileno(), read_range(large, key, start, min(_PIECE, whole - start), whole), start)

        list(pool.map(bring, range(0, whole, _PIECE)))
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

    def upload(self, key: str, path: Path, advance: Advance) -> None:
        target = Path(self._store.uri(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
        try:
            with _steady(path) as source, partial.open("xb", buffering=0) as file:
                while piece := source.read(_PIECE):
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

    def upload(self, key: str, path: Path, advance: Advance) -> None:
        size = path.stat().st_size
        if size <= _PIECE:
            with _steady(path) as file:
                self._store.put(key, file.read())
            return advance(size)
        done: set[int] = set()
        for _ in range(_UPLOADS):
            if self._upload_parts(key, path, size, advance, done):
                return
            there = self.find(key)
            if there is not None and there.size == size:
                return  # another publisher has put the same bytes there
        raise UserError(f"The upload of {self._store.uri(key)} was ended by others {_UPLOADS} times: publish again.")

    def _upload_parts(self, key: str, path: Path, size: int, advance: Advance, told: set[int]) -> bool:
        """False where the upload was ended by somebody else. told: parts that `advance` has heard of."""
        from botocore.exceptions import ClientError

        client = self._store.client
        names = {"Bucket": self._store.bucket, "Key": self._store.name(key)}
        spans = [(start, min(_PIECE, size - start)) for start in range(0, size, _PIECE)]
        try:
            upload = self._running_upload(key)
            etags = self._parts_there(names, upload, path, spans) if upload else None
            if etags is None:
                upload, etags = client.create_multipart_upload(**names)["UploadId"], {}

            def tell(number: int) -> None:
                if number not in told:
                    told.add(number)
                    advance(spans[number - 1][1])

            for number in etags:
                tell(number)

            with _steady(path) as file, ThreadPoolExecutor(_THREADS) as pool:

                def send(number: int) -> tuple[int, str]:
                    start, length = spans[number - 1]
                    body = os.pread(file.fileno(), length, start)
                    sent = client.upload_part(**names, UploadId=upload, PartNumber=number, Body=body)
                    return number, str(sent["ETag"])

                missing = [pool.submit(send, number) for number in range(1, len(spans) + 1) if number not in etags]
                try:
                    for future in as_completed(missing):
                        number, etags[number] = future.result()
                        tell(number)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            parts = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
            client.complete_multipart_upload(**names, UploadId=upload, MultipartUpload={"Parts": parts})
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise
            return False
        return True

    def _running_upload(self, key: str) -> str | None:
        """The newest upload of this object that was begun and never ended."""
        name = self._store.name(key)
        there = [one for one in self._uploads(name) if one["Key"] == name]
        return str(max(there, key=lambda one: one["Initiated"])["UploadId"]) if there else None

    def _parts_there(
        self, names: dict[str, str], upload: str, path: Path, spans: list[tuple[int, int]]
    ) -> dict[int, str] | None:
        """Number → ETag of the parts that the server has and that are the file's.

        None where it has parts beyond the file's end, of somebody who cuts otherwise: Ceph completes no upload without
        all of its parts.
        """
        found: dict[int, str] = {}
        pages = self._store.client.get_paginator("list_parts").paginate(**names, UploadId=upload)
        with path.open("rb", buffering=0) as file:
            for part in (part for page in pages for part in page.get("Parts", [])):
                number = int(part["PartNumber"])
                if number > len(spans):
                    return None
                if int(part["Size"]) != spans[number - 1][1]:
                    continue
                md5 = _MD5.fullmatch(str(part["ETag"]))
                start, length = spans[number - 1]
                own = hashlib.md5(os.pread(file.fileno(), length, start), usedforsecurity=False).hexdigest()
                if md5 and md5[1] == own:
                    found[number] = str(part["ETag"])
        return found

    def clock(self) -> float:
        answer = self._store.client.list_objects_v2(Bucket=self._store.bucket, Prefix=self._store.prefix, MaxKeys=1)
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def unfinished(self, prefix: str) -> list[Unfinished]:
        start = self._store.name("x")[:-1]
        return [
            Unfinished(one["Key"][len(start) :], one["Initiated"].timestamp(), str(one["UploadId"]))
            for one in self._uploads(start + prefix)
        ]

    def abandon(self, upload: Unfinished) -> None:
        client, name = self._store.client, self._store.name(upload.key)
        try:
            client.abort_multipart_upload(Bucket=self._store.bucket, Key=name, UploadId=upload.handle)
        except client.exceptions.NoSuchUpload:
            pass  # it has ended

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self._store.client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._store.bucket, Prefix=prefix):
            yield from page.get("Uploads", [])

    def require_creates_once(self, key: str) -> None:
        first, second = self._store.create(key, b"1"), self._store.create(key, b"2")
        self._store.delete(key)
        if not first or second:
            raise UserError(
                f"The store s3://{self._store.bucket}/{self._store.prefix} puts a new object in an old one's place "
                "though it is asked not to (If-None-Match), so that releases could be confused: use a server that "
                "honours it, on Ceph a bucket without versioning."
            )


@contextmanager
def _steady(path: Path) -> Iterator[Any]:
    """The open file; UserError where it changes before the block ends."""
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        yield file
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise UserError(f"{path} changed while it was being published: publish it again once it is written.")
