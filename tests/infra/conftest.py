import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from infra.ceph import ENDPOINT
from infra.manifest import PART_BYTES
from infra.ports import free_ports
from infra.storage import DirectoryStore, ObjectStore, S3Store
from tests.infra.faulty_s3 import FaultyS3, faulty_s3

LARGE = 2 * PART_BYTES + 12_345  # three parts


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """A real HTTP S3 server: the one that the environment names (`make test-ceph`), else moto's in its own process,
    which accepts any credentials."""
    if named := os.environ.get(ENDPOINT):
        yield named
        return
    (port,) = free_ports(1)
    environment = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server ended at start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of LARGE bytes."""
    path = tmp_path_factory.mktemp("large") / "weights"
    path.write_bytes(bytes(range(251)) * (LARGE // 251) + bytes(LARGE % 251))
    return path


@pytest.fixture
def s3_store(s3_address: str) -> S3Store:
    bucket = f"test-{secrets.token_hex(6)}"
    boto3.client("s3", endpoint_url=s3_address).create_bucket(Bucket=bucket)
    return S3Store(bucket, "some/prefix", s3_address)


@pytest.fixture
def proxy(s3_store: S3Store) -> Iterator[FaultyS3]:
    """Before the store's server."""
    with faulty_s3(s3_store.endpoint_url or "") as server:
        yield server


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """The same test on a directory and on S3."""
    if request.param == "s3":
        return request.getfixturevalue("s3_store")
    return DirectoryStore(tmp_path / "store")
