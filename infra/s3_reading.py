"""Objects of buckets that others fill: listed in pages, read whole or in part, with answers that are not trusted.

What is wrong with one object is an `S3ReadError`, and the next one may be fine. What is wrong with the bucket or the
credentials is a `UserError`: no other object would do better, and the same command goes on once it is mended.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from infra.errors import UserError
from infra.random_access import RandomAccess

_ATTEMPTS = 4  # per object, counted apart for the request (botocore's) and for the body (ours)
_BLOCK = 1 << 20
# A body may take a minute, and beyond that must come at 64 KiB a second: a server that drips would hold a worker.
_PATIENCE_SECONDS = 60.0
_SLOWEST_BYTES_PER_SECOND = 65_536
# Answers after which no other object of the bucket can be read either.
_HOPELESS = set(
    (
        "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired InvalidAccessKeyId InvalidClientTokenId "
        "SignatureDoesNotMatch RequestTimeTooSkewed UnrecognizedClientException AccountProblem NoSuchBucket"
    ).split()
)


@dataclass(frozen=True, slots=True)
class S3Object:
    """An object as a listing describes it: `size` in bytes, and the etag by which a change is noticed."""

    bucket: str
    key: str
    size: int
    etag: str
    endpoint_url: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class S3ReadError(OSError):
    """One object could not be read. kind: "missing", "changed" or "unreadable"."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return self.detail


def list_objects(bucket: str, prefix: str, endpoint_url: str | None, most: int | None = None) -> Iterator[S3Object]:
    """The objects whose keys start with `prefix`, in the order of their keys, a page of a thousand at a time.

    most: stop after so many. UserError where the bucket cannot be listed.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    config = {"MaxItems": most, "PageSize": min(most, 1000)} if most else {}
    try:
        pages = _client(endpoint_url).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig=config):
            for item in page.get("Contents", []):
                yield S3Object(bucket, item["Key"], int(item["Size"]), str(item["ETag"]), endpoint_url)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise _about_the_bucket(bucket, endpoint_url, error) from error


def read_object(s3_object: S3Object, start: int = 0, size: int | None = None) -> bytes:
    """Bytes [start, start + size) of the object, all from `start` on where `size` is None.

    Exactly these or S3ReadError: a body that ends early, takes too long or belongs to another version than was listed
    is none.
    """
    buffer = bytearray(max(s3_object.size - start, 0) if size is None else size)
    read_into(s3_object, start, memoryview(buffer))
    return bytes(buffer)


def read_into(s3_object: S3Object, start: int, buffer: memoryview) -> None:
    """Fill the buffer with the object's bytes from `start` on; S3ReadError as by `read_object`."""
    if not len(buffer):
        return
    failure: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(0.1 * 2**attempt)
        try:
            return _read_once(s3_object, start, buffer)
        except _Again as error:
            failure = error.cause
    raise S3ReadError("unreadable", f"{_ATTEMPTS} attempts, the last: {_line(failure)}")


class _Again(Exception):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _read_once(s3_object: S3Object, start: int, buffer: memoryview) -> None:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectTimeoutError,
        CredentialRetrievalError,
        EndpointConnectionError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    bucket, endpoint_url, size = s3_object.bucket, s3_object.endpoint_url, len(buffer)
    try:
        answer = _client(endpoint_url).get_object(
            Bucket=bucket, Key=s3_object.key, Range=f"bytes={start}-{start + size - 1}"
        )
        # Not If-Match: some servers compare it with the quotes that boto3 sends.
        if s3_object.etag and answer.get("ETag", s3_object.etag) != s3_object.etag:
            raise S3ReadError("changed", f"etag {answer['ETag']}, listed with {s3_object.etag}")
        whole = str(answer.get("ContentRange", "")).rpartition("/")[2]
        if whole.isdigit() and int(whole) != s3_object.size:
            raise S3ReadError("changed", f"it has {int(whole):,} bytes in place of {s3_object.size:,}")
        _read_body(answer["Body"], buffer)
    except S3ReadError:
        raise
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _HOPELESS:
            raise _about_the_bucket(bucket, endpoint_url, error) from error
        if code in ("NoSuchKey", "404"):
            raise S3ReadError("missing", "the object is not there") from error
        if code == "InvalidRange":
            raise S3ReadError("changed", "the object is shorter than listed") from error
        raise S3ReadError("unreadable", _line(error)) from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise _about_the_bucket(bucket, endpoint_url, error) from error
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        raise _about_the_bucket(bucket, endpoint_url, error) from error
    except (
        HTTPClientError,
        IncompleteReadError,
        OSError,
        _ShortBody,
    ) as error:  # the connection broke, or the body did
        raise _Again(error) from error
    except BotoCoreError as error:
        raise S3ReadError("unreadable", _line(error)) from error


class _ShortBody(Exception):
    pass


def _read_body(body: Any, buffer: memoryview) -> None:
    size, came = len(buffer), 0
    deadline = time.monotonic() + _PATIENCE_SECONDS + size / _SLOWEST_BYTES_PER_SECOND
    try:
        # `read` would cost four times as much: it puts the pieces together again.
        while came < size and (block := body.readinto(buffer[came : came + _BLOCK])):
            came += block
            if time.monotonic() > deadline:
                raise S3ReadError("unreadable", f"{came} of {size} bytes came in {_PATIENCE_SECONDS:.0f} s or more")
        # One byte more than was asked for is enough to know that the server does not keep ranges.
        came += body.readinto(memoryview(bytearray(1))) if came == size else 0
    finally:
        body.close()
    if came != size:
        raise _ShortBody(f"{came} bytes came where {size} were asked for")


class S3Stream(RandomAccess):
    """An object as a seekable stream; wrap it in io.BufferedReader, for each read is a request."""

    def __init__(self, s3_object: S3Object) -> None:
        super().__init__(s3_object.size)
        self._object = s3_object

    def read_at(self, place: int, size: int) -> bytes:
        return read_object(self._object, place, size)


@lru_cache(maxsize=8)
def _client(endpoint_url: str | None) -> Any:
    """One client per process and server: making one takes longer than reading a photo."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=10,
        read_timeout=20,  # between two pieces of an answer
        retries={"max_attempts": _ATTEMPTS, "mode": "standard"},
        max_pool_connections=16,
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", endpoint_url=endpoint_url, config=config)


def _about_the_bucket(bucket: str, endpoint_url: str | None, error: Exception) -> UserError:
    return UserError(
        f"The bucket s3://{bucket} on {endpoint_url or 'AWS'} cannot be read ({_line(error)}): mend the source's "
        "address, storage.endpoint_url or the AWS credentials, and give the same command again."
    )


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
