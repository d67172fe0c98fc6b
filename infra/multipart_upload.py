"""A file's parts sent to an S3 server, several at a time, as a release's manifest cuts and describes them.

A server that knows how checks each part, and at the end the whole, by the parts' SHA-256: what it takes are the bytes
that the manifest means. Those sums are signed with the request, so that the parts need not be read a second time for
their signature; other servers are sent parts that are signed themselves. An upload that was killed goes on with the
parts that the server has.
"""

import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from infra.manifest import Content, part_spans
from infra.steady_file import changed, steady
from infra.storage import S3Store

_THREADS = 8
_OTHER_BYTES = ("BadDigest", "XAmzContentChecksumMismatch")
_ALGORITHM, _CHECKSUM = "SHA256", "ChecksumSHA256"

Advance = Callable[[int], None]
"""Called with a number of bytes that are done."""


@dataclass(frozen=True)
class _Part:
    """The bytes [start, start + size) of a file and their SHA-256; numbers begin with 1."""

    number: int
    start: int
    size: int
    sha256: bytes

    @property
    def checksum(self) -> dict[str, str]:
        return {_CHECKSUM: base64.b64encode(self.sha256).decode()}

    def read(self, file: FileIO) -> bytes:
        return os.pread(file.fileno(), self.size, self.start)


@dataclass(frozen=True)
class _Upload:
    """One that runs. checks: the server checks the parts by their SHA-256. etags: of the parts that it has."""

    id: str
    checks: bool
    etags: dict[int, str] = field(default_factory=dict)

    def names(self, part: _Part) -> dict[str, Any]:
        """How a part is named when it is sent, and again at the end."""
        return {"PartNumber": part.number, **(part.checksum if self.checks else {})}


def upload_parts(store: S3Store, key: str, path: Path, content: Content, advance: Advance, told: set[int]) -> bool:
    """Write the file, which the content describes part by part, as an object, whole or not at all. False where somebody
    else ended the upload.

    told: the numbers of the parts that `advance` has heard of. Raises UserError where the file changes meanwhile.
    """
    from botocore.exceptions import ClientError

    names, parts = {"Bucket": store.bucket, "Key": store.name(key)}, _parts_of(content)

    def tell(part: _Part) -> None:
        if part.number not in told:
            told.add(part.number)
            advance(part.size)

    try:
        with steady(path, content.size) as file, ThreadPoolExecutor(_THREADS) as pool:
            upload = _running(store, names, file, parts) or _begun(store, names)
            sending = _client_for(store, upload)

            def send(part: _Part) -> str:
                about = {**names, **upload.names(part), "UploadId": upload.id}
                return str(sending.upload_part(**about, Body=part.read(file))["ETag"])

            for part in (part for part in parts if part.number in upload.etags):
                tell(part)
            missing = {pool.submit(send, part): part for part in parts if part.number not in upload.etags}
            try:
                for sent in as_completed(missing):
                    upload.etags[missing[sent].number] = sent.result()
                    tell(missing[sent])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        ended = [{**upload.names(part), "ETag": upload.etags[part.number]} for part in parts]
        store.client.complete_multipart_upload(**names, UploadId=upload.id, MultipartUpload={"Parts": ended})
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code in _OTHER_BYTES:
            raise changed(path) from error
        if code != "NoSuchUpload":
            raise
        return False
    return True


def _parts_of(content: Content) -> list[_Part]:
    described = zip(part_spans(content.size), content.parts, strict=True)
    return [_Part(number, *span, bytes.fromhex(digest)) for number, (span, digest) in enumerate(described, 1)]


def _begun(store: S3Store, names: dict[str, str]) -> _Upload:
    answer = store.client.create_multipart_upload(**names, ChecksumAlgorithm=_ALGORITHM)
    return _Upload(str(answer["UploadId"]), answer.get("ChecksumAlgorithm") == _ALGORITHM)


def _running(store: S3Store, names: dict[str, str], file: FileIO, parts: list[_Part]) -> _Upload | None:
    """The newest upload of the object, with the parts that are the file's.

    None where there is none that we can go on with: one whose parts have sums of another kind, or one that has parts
    beyond the file's end, of somebody who cuts otherwise, as Ceph completes no upload without all of its parts.
    """
    there = [one for one in store.running_uploads(names["Key"]) if one["Key"] == names["Key"]]
    if not there:
        return None
    newest = max(there, key=lambda one: one["Initiated"])
    algorithms, etags = {newest.get("ChecksumAlgorithm")}, {}
    for page in store.client.get_paginator("list_parts").paginate(**names, UploadId=newest["UploadId"]):
        algorithms.add(page.get("ChecksumAlgorithm"))  # some servers say it here, some there, some nowhere
        if not algorithms <= {None, _ALGORITHM}:
            return None
        for one in page.get("Parts", []):
            number, etag = int(one["PartNumber"]), str(one["ETag"])
            if number > len(parts):
                return None
            part = parts[number - 1]
            if int(one["Size"]) == part.size and _is_md5_of(etag, part.read(file)):
                etags[number] = etag
    return _Upload(str(newest["UploadId"]), _ALGORITHM in algorithms, etags)


def _is_md5_of(etag: str, data: bytes) -> bool:
    """Where the ETag of a part is no MD5, as in encrypted buckets, the part is sent again."""
    return etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _client_for(store: S3Store, upload: _Upload) -> Any:
    """Where the server checks the parts, one that does not read them again to sign them; unless AWS's settings, by
    `payload_signing_enabled`, want every body signed."""
    import boto3
    from botocore.config import Config

    config = store.client.meta.config
    given = config.s3 or {}
    if not upload.checks or "payload_signing_enabled" in given:
        return store.client
    own = config.merge(Config(s3={**given, "payload_signing_enabled": False}))
    return boto3.client("s3", endpoint_url=store.endpoint_url, config=own)
