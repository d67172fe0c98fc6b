"""Bytes from wherever they lie: the same from a file, a zip, a tar and S3; and the reason where they cannot be had."""

import io
import os
import pickle
import secrets
import tarfile
import zipfile
from pathlib import Path

import boto3
import pytest

from infra.s3_reading import S3Object, list_objects
from preprocessing.photos import PhotoRefused, Reason, read_bytes
from preprocessing.places import Place, Span, StampedFile, holder_of, is_readable, open_stream
from preprocessing.tars import tar_entries
from preprocessing.zips import zip_entries

PHOTO = os.urandom(3000)


def write_archives(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(PHOTO)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first.jpg", b"another")
        archive.writestr("a.jpg", PHOTO)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in (("first.jpg", b"another"), ("a.jpg", PHOTO)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def places(file: Path | S3Object, zipped: Path | S3Object, tarred: Path | S3Object) -> list[Place]:
    with open_stream(zipped) as stream:
        member = [entry.member for entry in zip_entries(stream, holder_of(zipped))][1]
    with open_stream(tarred) as stream:
        entry = list(tar_entries(stream, holder_of(tarred).size))[1]
    return [file, member, Span(holder_of(tarred), entry.start, entry.size)]


@pytest.fixture
def on_disk(tmp_path: Path) -> list[Place]:
    write_archives(tmp_path)
    return places(tmp_path / "a.jpg", tmp_path / "a.zip", tmp_path / "a.tar")


@pytest.fixture(scope="module")
def on_s3(s3_address: str, tmp_path_factory: pytest.TempPathFactory) -> list[Place]:
    folder, bucket = tmp_path_factory.mktemp("places"), f"places-{secrets.token_hex(6)}"
    write_archives(folder)
    client = boto3.client("s3", endpoint_url=s3_address)
    client.create_bucket(Bucket=bucket)
    for name in ("a.jpg", "a.zip", "a.tar"):
        client.put_object(Bucket=bucket, Key=name, Body=(folder / name).read_bytes())
    found = {item.key: item for item in list_objects(bucket, "", s3_address)}
    return places(found["a.jpg"], found["a.zip"], found["a.tar"])


@pytest.mark.parametrize("where", ["on_disk", "on_s3"])
def test_every_place_gives_the_same_bytes_also_after_a_journey(where: str, request: pytest.FixtureRequest) -> None:
    for place in request.getfixturevalue(where):
        assert read_bytes(place) == PHOTO
        assert read_bytes(pickle.loads(pickle.dumps(place))) == PHOTO
        assert is_readable(place) and len(pickle.dumps(place)) < 700


def test_what_changed_or_vanished_has_its_reason(on_disk: list[Place], tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar"):
        with open(tmp_path / name, "ab") as file:
            file.write(b"more")
    for place in on_disk[1:]:
        with pytest.raises(PhotoRefused) as caught:
            read_bytes(place)
        assert caught.value.reason == Reason.CHANGED and caught.value.reason.may_mend
    for name in ("a.jpg", "a.zip", "a.tar"):
        (tmp_path / name).unlink()
    for place in on_disk:
        with pytest.raises(PhotoRefused) as caught:
            read_bytes(place)
        assert caught.value.reason == Reason.MISSING_FILE and not is_readable(place)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a.jpg", os.fstat
    path.write_bytes(PHOTO)
    times = iter(range(9))

    def writing(descriptor: int) -> os.stat_result:
        if next(times) == 1:  # between the reading and the second look
            with open(path, "ab") as file:
                file.write(b"more")
        return real(descriptor)

    monkeypatch.setattr("preprocessing.photos.os.fstat", writing)
    with pytest.raises(PhotoRefused) as caught:
        read_bytes(path)
    assert caught.value.reason == Reason.CHANGED


def test_an_archive_that_became_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(PhotoRefused) as caught:
        read_bytes(Span(StampedFile(tmp_path / "pipe.tar", 2000, 0), 512, 10))
    assert caught.value.reason == Reason.UNREADABLE
    with pytest.raises(OSError, match="regular"):
        open_stream(tmp_path / "pipe.tar")


def test_an_empty_member_and_one_beyond_the_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(1024))
    holder = holder_of(tmp_path / "x.tar")
    for span, reason in ((Span(holder, 512, 0), Reason.EMPTY_FILE), (Span(holder, 512, 600), Reason.BAD_ARCHIVE)):
        with pytest.raises(PhotoRefused) as caught:
            read_bytes(span)
        assert caught.value.reason == reason
