"""Sources on S3: the photos are those on disk, each is kept or refused whatever the server does, none is read twice."""

import secrets
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest

from flows.ingest import new_photos
from flows.run import Run
from flows.workers import IngestWorker
from infra import s3_reading
from infra.errors import UserError
from infra.settings import Settings, load_settings
from preprocessing.ingesting import ingest_chunk
from preprocessing.photos import Reason
from preprocessing.sources import Record, Surroundings, open_source
from preprocessing.sources.paperfolk import write_celeba, write_ffhq
from tests.infra.faulty_s3 import FaultyS3, faulty_s3
from tests.preprocessing.sources.test_fastcomposer import write_root as write_fastcomposer

LIMITS = SimpleNamespace(pixels=16, min_side=8, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small collection of each kind, as folders."""
    top = tmp_path_factory.mktemp("collections")
    write_ffhq(top / "ffhq", 4, 0, 32, flaws=False, processes=1)
    write_celeba(top / "celeba", 2, 2, 0, 32)
    shutil.copytree(top / "celeba", top / "celeba-zip")
    with zipfile.ZipFile(top / "celeba-zip/img_align_celeba.zip", "w") as archive:
        for path in sorted((top / "celeba-zip/img_align_celeba").iterdir()):
            archive.write(path, f"img_align_celeba/{path.name}")
    shutil.rmtree(top / "celeba-zip/img_align_celeba")
    photos = sorted((top / "ffhq/images1024x1024/00000").iterdir())
    (top / "folder/inside").mkdir(parents=True)
    for path in photos:
        shutil.copy(path, top / "folder/inside" / path.name)
    (top / "webdataset").mkdir()
    with tarfile.open(top / "webdataset/a.tar", "w") as tar:
        for path in photos:
            tar.add(path, path.name)
    write_fastcomposer(top / "fastcomposer", 4)
    with zipfile.ZipFile(top / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in photos:
            archive.write(path, path.name)
    return top


@pytest.fixture(scope="module")
def server(s3_address: str) -> Iterator[FaultyS3]:
    with pytest.MonkeyPatch.context() as patch, faulty_s3(s3_address) as server:
        patch.setattr(s3_reading, "_ATTEMPTS", 2)
        yield server


@pytest.fixture(scope="module")
def bucket(s3_address: str, roots: Path) -> str:
    name = f"sources-{secrets.token_hex(6)}"
    client = boto3.client("s3", endpoint_url=s3_address)
    client.create_bucket(Bucket=name)
    for path in roots.rglob("*"):
        if path.is_file() and "truth" not in str(path):
            client.put_object(Bucket=name, Key=f"data/{path.relative_to(roots)}", Body=path.read_bytes())
    return name


@pytest.fixture
def proxy(server: FaultyS3) -> FaultyS3:
    server.faults.clear()
    server.asked.clear()
    return server


def reasons(records: list[Record]) -> list[str]:
    rows = ingest_chunk(records, set(), LIMITS).rows
    assert [row.origin for row in rows] == [record.origin for record in records]
    assert all(bool(row.reason) == (row.status == "refused") and bool(row.detail) == bool(row.reason) for row in rows)
    return [row.reason for row in rows]


@pytest.mark.parametrize(
    "kind, path, requests",
    [
        ("ffhq", "ffhq", 1),
        ("paperfolk", "ffhq", 1),
        ("celeba", "celeba", 1),
        ("celeba", "celeba-zip", 1),
        ("folder", "folder", 1),
        ("folder", "photos.zip", 1),
        ("webdataset", "webdataset", 1),
        ("webdataset", "webdataset/a.tar", 1),
        ("fastcomposer", "fastcomposer", 3),  # picture, caption and masks
    ],
)
def test_a_prefix_is_read_as_the_folder_is(
    kind: str, path: str, requests: int, proxy: FaultyS3, bucket: str, roots: Path, tmp_path: Path
) -> None:
    here = list(open_source(f"{kind}:{roots / path}").records())
    around = Surroundings(tmp_path / "cache")
    there = list(open_source(f"{kind}:s3://{bucket}/data/{path}", proxy.address, around).records())
    assert [record.origin for record in there] == [record.origin for record in here] and here
    assert [(record.faces, record.identity, record.md5) for record in there] == [
        (record.faces, record.identity, record.md5) for record in here
    ]
    asked = len(proxy.gets())
    found, expected = (ingest_chunk(records, set(), LIMITS) for records in (there, here))
    assert found.keys == expected.keys and len(found.keys) == 4
    assert len(proxy.gets()) == asked + 4 * requests


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("500", Reason.UNREADABLE),
        ("reset", Reason.UNREADABLE),
        ("short", Reason.UNREADABLE),
        ("less", Reason.UNREADABLE),
        ("denied", Reason.UNREADABLE),
        ("changed", Reason.CHANGED),
    ],
)
def test_what_is_wrong_with_one_object_costs_that_one(fault: str, reason: Reason, proxy: FaultyS3, bucket: str) -> None:
    records = list(open_source(f"folder:s3://{bucket}/data/folder", proxy.address).records())
    proxy.faults["00002.png"] = [fault]
    assert reasons(records) == ["", "", reason, ""]
    assert reason.may_mend
    proxy.faults["00002.png"] = [fault, ""] if fault not in ("denied", "changed") else [""]
    assert reasons(records) == ["", "", "", ""]


def test_an_object_that_vanishes_costs_that_one(proxy: FaultyS3, bucket: str, s3_address: str) -> None:
    client = boto3.client("s3", endpoint_url=s3_address)
    client.copy_object(Bucket=bucket, Key="data/gone/1.png", CopySource=f"{bucket}/data/folder/inside/00001.png")
    records = list(open_source(f"folder:s3://{bucket}/data/gone", proxy.address).records())
    client.delete_object(Bucket=bucket, Key="data/gone/1.png")
    assert reasons(records) == [Reason.MISSING_FILE]


def test_credentials_that_expire_stop_the_run_and_refuse_nothing(proxy: FaultyS3, bucket: str) -> None:
    records = list(open_source(f"folder:s3://{bucket}/data/folder", proxy.address).records())
    proxy.faults["00002.png"] = ["expired"]
    with pytest.raises(UserError, match="credentials") as caught:
        ingest_chunk(records, set(), LIMITS)
    assert "\n" not in str(caught.value)


def test_names_that_lead_elsewhere_are_never_asked_for(proxy: FaultyS3, bucket: str, s3_address: str) -> None:
    client = boto3.client("s3", endpoint_url=s3_address)
    for name in ("ok 写真 ü.png", "back\\slash.png", "/absolute.png"):
        source = {"Bucket": bucket, "Key": "data/folder/inside/00001.png"}
        client.copy_object(Bucket=bucket, Key=f"data/odd/{name}", CopySource=source)
    records = list(open_source(f"folder:s3://{bucket}/data/odd", proxy.address).records())
    assert sorted(reasons(records)) == ["", Reason.UNSAFE_PATH, Reason.UNSAFE_PATH]
    assert len(proxy.gets()) == 1


@pytest.mark.parametrize("address", ["s3://", "s3://x", "s3://{bucket}/none", "s3://no-such-bucket-here/x", "s3:///x"])
def test_an_address_with_nothing_there_is_one_sentence(address: str, proxy: FaultyS3, bucket: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(f"folder:{address.replace('{bucket}', bucket)}", proxy.address)
    assert "\n" not in str(caught.value)


def _ingest(settings: Settings) -> int:
    run, records = Run(settings), new_photos(settings)
    worker = IngestWorker(run.store, settings.ingest, "f", frozenset(run.catalog.known_digests()))
    done = worker({"index": 0, "records": records})
    run.catalog.commit([done["shard"]] if done["shard"] else [], done["photos"])
    return len(records)


@pytest.mark.parametrize("kind, path", [("folder", "folder"), ("celeba", "celeba"), ("webdataset", "webdataset")])
def test_a_second_pass_with_nothing_new_fetches_no_photo(
    kind: str, path: str, proxy: FaultyS3, bucket: str, tmp_path: Path
) -> None:
    changes = {"ingest.source": f"{kind}:s3://{bucket}/data/{path}", "storage.endpoint_url": proxy.address}
    settings = load_settings("demo", tmp_path / "workspace", {**changes, "storage.root": str(tmp_path / "store")})
    assert _ingest(settings) == 4 and len(proxy.gets(".png") + proxy.gets(".jpg")) == (0 if kind == "webdataset" else 4)
    proxy.asked.clear()
    assert new_photos(settings) == []
    assert [path for path in proxy.gets() if not path.endswith(".txt")] == []
    assert proxy.asked, "it was listed"
