"""Parts on their way to an S3 server: resumed, sent again, checked by the server where it can."""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from infra import multipart_upload
from infra.blobs import describe_file
from infra.errors import UserError
from infra.large_objects import large_objects
from infra.manifest import PART_BYTES, Content
from infra.storage import S3Store
from tests.infra.conftest import LARGE
from tests.infra.faulty_s3 import FaultyS3


@pytest.fixture(scope="module")
def described(large_file: Path) -> Content:
    return describe_file(large_file)


def through(proxy: FaultyS3, store: S3Store, attempts: int = 5) -> S3Store:
    return S3Store(store.bucket, store.prefix, proxy.address, attempts)


def upload(store: S3Store, path: Path, content: Content) -> int:
    """The bytes that were told of."""
    told: list[int] = []
    large_objects(store).upload("blobs/x", path, content, told.append)
    return sum(told)


def begin(store: S3Store, bodies: dict[int, bytes], algorithm: str = "") -> str:
    """An upload of some parts, left running: its id."""
    names = {"Bucket": store.bucket, "Key": store.name("blobs/x")}
    asked = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    begun = str(store.client.create_multipart_upload(**names, **asked)["UploadId"])
    for number, body in bodies.items():
        store.client.upload_part(**names, **asked, UploadId=begun, PartNumber=number, Body=body)
    return begun


def left(store: S3Store) -> list[str]:
    return [one.handle for one in large_objects(store).unfinished("blobs/x")]


def test_an_upload_that_was_killed_goes_on_with_the_parts_that_are_there(
    s3_store: S3Store, proxy: FaultyS3, large_file: Path, described: Content
) -> None:
    store = through(proxy, s3_store, attempts=1)
    proxy.faults["partNumber=2"] = ["500"]
    with pytest.raises(Exception, match="500|InternalError"):
        upload(store, large_file, described)
    assert s3_store.list() == [] and len(left(s3_store)) == 1
    proxy.faults.clear()
    proxy.asked.clear()
    assert upload(store, large_file, described) == LARGE
    sent = {path.partition("partNumber=")[2].partition("&")[0] for path in proxy.asked if "partNumber=" in path}
    assert "2" in sent and sent != {"1", "2", "3"}
    assert s3_store.get("blobs/x") == large_file.read_bytes() and left(s3_store) == []


@pytest.mark.parametrize("beyond", [False, True])
def test_parts_of_other_bytes_are_sent_again(
    s3_store: S3Store, large_file: Path, described: Content, beyond: bool
) -> None:
    """Parts beyond the file's end make an upload that cannot be completed everywhere: it is left to the sweep."""
    begun = begin(s3_store, {1: bytes(PART_BYTES), 3: b"short", **({9: b"more"} if beyond else {})})
    assert upload(s3_store, large_file, described) == LARGE
    assert s3_store.get("blobs/x") == large_file.read_bytes()
    assert left(s3_store) == ([begun] if beyond else [])


@pytest.mark.parametrize("algorithm", ["", "SHA256", "CRC32"])
def test_an_upload_is_gone_on_with_unless_its_parts_have_other_sums(
    s3_store: S3Store, proxy: FaultyS3, large_file: Path, described: Content, algorithm: str
) -> None:
    """As earlier versions and others begin them. A server that knows no sums does not say that they are others."""
    begun = begin(s3_store, {1: large_file.read_bytes()[:PART_BYTES]}, algorithm)
    (listed,) = s3_store.running_uploads(s3_store.name("blobs/x"))
    other = listed.get("ChecksumAlgorithm") == "CRC32"
    assert upload(through(proxy, s3_store), large_file, described) == LARGE
    assert s3_store.get("blobs/x") == large_file.read_bytes()
    assert left(s3_store) == ([begun] if other else [])
    assert ("partNumber=1" in " ".join(proxy.asked)) == other


def test_an_upload_that_somebody_else_ended_is_begun_again(
    s3_store: S3Store, proxy: FaultyS3, large_file: Path, described: Content
) -> None:
    store = through(proxy, s3_store)
    proxy.faults["partNumber=2"] = ["ended", ""]
    assert upload(store, large_file, described) == LARGE
    assert s3_store.get("blobs/x") == large_file.read_bytes()
    proxy.faults["partNumber=2"] = ["ended"]
    upload(store, large_file, described)  # it is there: another publisher's, for all we know
    s3_store.delete("blobs/x")
    with pytest.raises(UserError, match="publish again"):
        upload(store, large_file, described)
    assert s3_store.list() == []
    large = large_objects(s3_store)
    for one in large.unfinished("blobs/"):
        large.abandon(one)
        large.abandon(one)  # twice is once


def knows_sums(store: S3Store) -> bool:
    begin(store, {}, "SHA256")
    (listed,) = store.running_uploads(store.name("blobs/x"))
    for one in large_objects(store).unfinished("blobs/"):
        large_objects(store).abandon(one)
    return bool(listed.get("ChecksumAlgorithm"))


def test_a_server_that_can_checks_each_part_and_the_whole_by_the_manifests_digests(
    s3_store: S3Store, proxy: FaultyS3, large_file: Path, described: Content
) -> None:
    """Such parts are not read again for their signature; where the server does not, each is signed itself."""
    checks = knows_sums(s3_store)
    upload(through(proxy, s3_store), large_file, described)
    assert (proxy.checked, proxy.unsigned) == ((3, 3) if checks else (0, 0))
    if checks:
        head = s3_store.client.head_object(Bucket=s3_store.bucket, Key=s3_store.name("blobs/x"), ChecksumMode="ENABLED")
        of_all = hashlib.sha256(b"".join(bytes.fromhex(one) for one in described.parts)).digest()
        assert head["ChecksumSHA256"].partition("-")[0] == base64.b64encode(of_all).decode()


def test_a_file_that_changed_since_it_was_described_is_refused_by_the_server(
    s3_store: S3Store, proxy: FaultyS3, large_file: Path, described: Content, tmp_path: Path
) -> None:
    if not knows_sums(s3_store):
        pytest.skip("the server knows no sums")
    (tmp_path / "other").write_bytes(large_file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match="other changed while"):
        upload(through(proxy, s3_store), tmp_path / "other", described)
    assert s3_store.list() == []


def test_who_wants_every_body_signed_gets_it(
    s3_store: S3Store,
    proxy: FaultyS3,
    large_file: Path,
    described: Content,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  payload_signing_enabled = true\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has read its settings
    checks = knows_sums(s3_store)
    upload(through(proxy, s3_store), large_file, described)
    assert (proxy.checked, proxy.unsigned) == (3 if checks else 0, 0)


def test_a_server_takes_bodies_whose_sum_is_signed_in_their_place(
    s3_store: S3Store, proxy: FaultyS3, large_file: Path, described: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ceph looks at signatures and knows no sums: here it is sent them all the same."""
    store, begun = through(proxy, s3_store), multipart_upload._begun
    monkeypatch.setattr(multipart_upload, "_begun", lambda *of: replace(begun(*of), checks=True))
    upload(store, large_file, described)
    assert (proxy.checked, proxy.unsigned) == (3, 3)
    assert s3_store.get("blobs/x") == large_file.read_bytes()
