"""A run with secrets in its environment, which it uses: they stand in nothing that it writes, says or logs.

Real Prefect, real Ray, an S3 server behind the service's policies: two minutes, so `make test-faults` has it."""

import base64
import contextlib
import io
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars
import pytest

from tests.infra.guarded_server import GuardedS3
from tests.tiny_world import tiny_changes, write_world

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, quoted, in base64 at any offset, backwards in an escaped text."""
    raw = secret.encode()
    found = {raw, urllib.parse.quote(secret, safe="").encode(), repr(secret)[1:-1].encode()}
    for offset in range(3):  # what base64 makes of it in the middle of something, without its ends
        found.add(base64.b64encode(b"x" * offset + raw)[4:-4])
    return {one for one in found if len(one) >= 12}


@dataclass
class Ran:
    """What commands with secrets left behind."""

    server: GuardedS3
    secrets: dict[str, str]
    said: list[str] = field(default_factory=list)
    places: dict[str, bytes] = field(default_factory=dict)

    def holding(self, wanted: bytes) -> list[str]:
        """Where it stands."""
        return [place for place, data in self.places.items() if wanted in data]


class Watcher(threading.Thread):
    """Reads what lies in a folder for as long as it does: Ray's logs are gone when Ray is."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.found, self._ended = folder, dict[str, bytes](), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(1.0):
            self._look()

    def _look(self) -> None:
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_size < 50_000_000:
                    self.found[str(path)] = path.read_bytes()

    def end(self) -> None:
        self._ended.set()
        self.join()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("secrets")
    world = write_world(folder / "world", photos=12)
    workspace, key = folder / "workspace", folder / "release.key"
    short = Path(tempfile.mkdtemp(prefix="s-"))  # Ray's sockets have paths of at most 107 characters
    roles = {"service": ["ingest", "train", "publish"], "pull": ["pull"]}
    with GuardedS3(folder, roles) as server:
        password, passphrase = (f"pw-{secrets.token_hex(16)}" for _ in range(2))
        database, hook = (secrets.token_hex(20) for _ in range(2))
        ran = Ran(
            server,
            {
                "the store's key": server.keys["service"][1],
                "the puller's key": server.keys["pull"][1],
                "Prefect's password": password,
                "the signing key's passphrase": passphrase,
                "the database's password": database,
                "the webhook": hook,
            },
        )
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "AWS"))},
            **server.environment("service"),
            "PREFECT_SERVER_API_AUTH_STRING": f"moa:{password}",
            "PREFECT_API_AUTH_STRING": f"moa:{password}",
            "MOA_SIGNING_PASSPHRASE": passphrase,
            "DATABASE_URL": f"postgresql+asyncpg://prefect:{database}@db.invalid:5432/prefect",
            "SLACK_WEBHOOK_URL": f"https://hooks.slack.invalid/services/T0/B0/{hook}",
            "TMPDIR": str(short),
            "MOA_CACHE": str(folder / "cache"),
        }
        where = {
            "storage.root": f"s3://{server.bucket}/{server.prefix}",
            "storage.endpoint_url": server.address,
            "publish.signing_key": str(key),
        }
        changes = {**tiny_changes(world), **where, "train.workers": "1"}

        def moa(*words: str, expected: int = 0, **more: str) -> str:
            command = [sys.executable, "-m", "flows.cli", *words]
            done = subprocess.run(
                command, cwd=REPOSITORY, env=environment | more, capture_output=True, text=True, timeout=600
            )
            ran.said.append(done.stdout + done.stderr)
            assert done.returncode == expected, (ran.said[-1][-3000:], server.refused())
            return ran.said[-1]

        def settings(**other: str) -> list[str]:
            options = {**changes, **{name.replace("__", "."): value for name, value in other.items()}}
            sets = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
            return [*sets, "--workspace", str(workspace)]

        watcher = Watcher(short)
        watcher.start()
        try:
            moa("releases", "keygen", str(key))
            moa("retrain", *settings())
            # Arrow's S3 client asks for a bucket that nobody has, to learn who the server is.
            assert [one for one in server.refused() if "extremelyunlikelytoexist" not in one[2]] == []
            # And what people are told when something is wrong with what is secret.
            moa("releases", *settings(storage__root=f"s3://{server.bucket}/forbidden"), expected=2)
            moa("releases", "sign", "1", *settings(), expected=2, MOA_SIGNING_PASSPHRASE="another word")
            moa("metrics", "--once", *settings(storage__endpoint_url="http://127.0.0.1:9"), expected=2)
            pull = ["pull", "production", str(folder / "adapter"), *settings()]
            moa(*pull, **server.environment("pull"))
        finally:
            watcher.end()
        ran.places |= {f"said by command {number}": one.encode() for number, one in enumerate(ran.said)}
        ran.places |= watcher.found
        for path in [*workspace.rglob("*"), *(folder / "adapter").rglob("*"), *(folder / "cache").rglob("*"), key]:
            if path.is_file():
                ran.places[str(path)] = path.read_bytes()
        ran.places |= _objects(server)
        yield ran
    shutil.rmtree(short, ignore_errors=True)


def _objects(server: GuardedS3) -> dict[str, bytes]:
    """Every object of the store; tables also in words, for they are compressed."""
    client, found = server.root(), dict[str, bytes]()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket):
        for one in page["Contents"]:
            data = client.get_object(Bucket=server.bucket, Key=one["Key"])["Body"].read()
            found[one["Key"]] = data
            if one["Key"].endswith(".parquet"):
                found[f"{one['Key']} as text"] = polars.read_parquet(io.BytesIO(data)).write_ndjson().encode()
    return found


def test_no_secret_stands_in_anything_that_a_run_leaves(ran: Ran) -> None:
    for name, secret in ran.secrets.items():
        for form in forms(secret):
            assert ran.holding(form) == [], f"{name} stands there"


def test_what_was_searched_is_what_a_run_leaves(ran: Ran) -> None:
    """Logs, pages, reports, errors, objects: of each kind there is one, and what is no secret was found there."""
    bucket = ran.holding(ran.server.bucket.encode())
    assert any(place.endswith("prefect.db") for place in bucket), "Prefect's runs, parameters, logs and artifacts"
    assert any("said by command 2" in place for place in bucket), "an error that names the store"
    assert any("/logs/" in place for place in ran.places), "Ray's logs, while it ran"
    for kind in ("report.html", "summary.json", "lineage.json", "adapter.safetensors", "ndjson as text", ".tar"):
        if kind == "ndjson as text":
            assert any(place.endswith("as text") for place in ran.places)
        elif kind == "lineage.json":
            assert ran.holding(b"catalog_digest"), "a release's card"
        else:
            assert any(place.endswith(kind) for place in ran.places), kind


def test_the_search_finds_what_is_there(ran: Ran) -> None:
    ran.places["a log"] = b"user:" + base64.b64encode(b"moa:" + ran.secrets["Prefect's password"].encode())
    ran.places["a URL"] = b"postgresql://prefect:" + ran.secrets["the database's password"].encode() + b"@db"
    try:
        for name, place in (("Prefect's password", "a log"), ("the database's password", "a URL")):
            assert any(place in ran.holding(form) for form in forms(ran.secrets[name]))
    finally:
        del ran.places["a log"], ran.places["a URL"]
