"""Objects of a bucket through a server that misbehaves: exactly the right bytes, or one sentence."""

import secrets
from collections.abc import Iterator

import boto3
import pytest

from infra import s3_reading
from infra.errors import UserError
from infra.s3_reading import S3Object, S3ReadError, S3Stream, list_objects, read_object
from tests.infra.faulty_s3 import FaultyS3, faulty_s3

CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def bucket(s3_address: str) -> tuple[str, str]:
    name = f"reading-{secrets.token_hex(6)}"
    client = boto3.client("s3", endpoint_url=s3_address)
    client.create_bucket(Bucket=name)
    for key in ("a/1.bin", "a/2.bin", "b/3.bin", "写真 ü.bin", "a/empty"):
        client.put_object(Bucket=name, Key=key, Body=b"" if key == "a/empty" else CONTENT)
    return name, s3_address


@pytest.fixture(scope="module")
def server(bucket: tuple[str, str]) -> Iterator[FaultyS3]:
    with pytest.MonkeyPatch.context() as patch, faulty_s3(bucket[1]) as server:
        patch.setattr(s3_reading, "_ATTEMPTS", 2)
        yield server


@pytest.fixture
def proxy(server: FaultyS3) -> FaultyS3:
    server.faults.clear()
    server.asked.clear()
    return server


def one(proxy: FaultyS3, bucket: tuple[str, str], key: str = "a/1.bin") -> S3Object:
    return next(item for item in list_objects(bucket[0], key, proxy.address) if item.key == key)


def test_a_listing_tells_sizes_and_etags_in_the_order_of_the_keys(bucket: tuple[str, str]) -> None:
    found = list(list_objects(bucket[0], "", bucket[1]))
    assert [item.key for item in found] == ["a/1.bin", "a/2.bin", "a/empty", "b/3.bin", "写真 ü.bin"]
    assert {item.size for item in found} == {len(CONTENT), 0} and all(item.etag for item in found)
    assert [item.key for item in list_objects(bucket[0], "a/", bucket[1], most=1)] == ["a/1.bin"]
    assert str(found[0]) == f"s3://{bucket[0]}/a/1.bin"


def test_a_range_is_one_request(proxy: FaultyS3, bucket: tuple[str, str]) -> None:
    item = one(proxy, bucket)
    assert read_object(item) == CONTENT
    assert read_object(item, 100, 33) == CONTENT[100:133]
    assert len(proxy.gets()) == 2
    assert read_object(one(proxy, bucket, "a/empty")) == b"" and len(proxy.gets()) == 2
    assert read_object(one(proxy, bucket, "写真 ü.bin")) == CONTENT


@pytest.mark.parametrize("fault", ["500", "503", "reset", "short", "less", "more"])
def test_what_passes_is_tried_again(fault: str, proxy: FaultyS3, bucket: tuple[str, str]) -> None:
    item = one(proxy, bucket)
    proxy.faults["a/1.bin"] = [fault, ""]
    assert read_object(item, 10, 5000) == CONTENT[10:5010]


@pytest.mark.parametrize("fault", ["500", "short", "less", "reset", "denied"])
def test_what_stays_is_about_the_object(fault: str, proxy: FaultyS3, bucket: tuple[str, str]) -> None:
    item = one(proxy, bucket)
    proxy.faults["a/1.bin"] = [fault]
    with pytest.raises(S3ReadError) as caught:
        read_object(item)
    assert caught.value.kind == "unreadable" and caught.value.detail and "\n" not in str(caught.value)
    assert read_object(one(proxy, bucket, "a/2.bin")) == CONTENT


def test_an_object_that_changed_or_vanished_is_told_apart(proxy: FaultyS3, bucket: tuple[str, str]) -> None:
    item = one(proxy, bucket)
    proxy.faults["a/1.bin"] = ["changed"]
    with pytest.raises(S3ReadError) as caught:
        read_object(item)
    assert caught.value.kind == "changed"
    with pytest.raises(S3ReadError) as caught:
        read_object(S3Object(bucket[0], "a/none", 10, "", proxy.address))
    assert caught.value.kind == "missing"
    with pytest.raises(S3ReadError) as caught:
        read_object(S3Object(bucket[0], "a/1.bin", len(CONTENT) + 99, "", proxy.address), len(CONTENT) + 9, 9)
    assert caught.value.kind == "changed"


def test_a_server_that_drips_is_given_up(
    proxy: FaultyS3, bucket: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_reading, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(s3_reading, "_SLOWEST_BYTES_PER_SECOND", 1e9)
    monkeypatch.setattr(s3_reading, "_BLOCK", 4)
    item = one(proxy, bucket)
    proxy.faults["a/1.bin"] = ["drip"]
    with pytest.raises(S3ReadError, match="bytes came"):
        read_object(item, 0, 200)


def test_credentials_that_expired_stop_the_run_with_one_sentence(proxy: FaultyS3, bucket: tuple[str, str]) -> None:
    item = one(proxy, bucket)
    proxy.faults["a/"] = ["expired"]
    with pytest.raises(UserError, match="credentials") as caught:
        read_object(item)
    assert "\n" not in str(caught.value) and bucket[0] in str(caught.value)
    with pytest.raises(UserError, match="credentials"):
        list(list_objects(bucket[0], "a/", proxy.address))


def test_a_bucket_or_a_server_that_is_not_there_is_one_sentence(
    proxy: FaultyS3, bucket: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_reading, "_ATTEMPTS", 1)
    for name, address in (("no-such-bucket-here", proxy.address), (bucket[0], "http://127.0.0.1:9")):
        with pytest.raises(UserError, match="cannot be read"):
            list(list_objects(name, "", address))
        with pytest.raises(UserError, match="cannot be read"):
            read_object(S3Object(name, "x", 9, "", address))


def test_a_stream_seeks(bucket: tuple[str, str]) -> None:
    import io

    item = next(list_objects(bucket[0], "a/1.bin", bucket[1]))
    with io.BufferedReader(S3Stream(item), 64) as stream:
        assert stream.seek(-10, io.SEEK_END) == len(CONTENT) - 10
        assert stream.read(99) == CONTENT[-10:]
        stream.seek(300)
        assert stream.read(200) == CONTENT[300:500] and stream.tell() == 500
