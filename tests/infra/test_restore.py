"""infra/runbooks/restore-from-backup.md, rehearsed: a store is copied as plain objects, destroyed and put back."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import boto3
from typer.testing import CliRunner

from flows.checkpoints import latest_step
from flows.cli import app
from flows.run import Run
from flows.train import plan_training
from infra.registry import Releases
from infra.settings import Settings
from infra.storage import DirectoryStore, ObjectStore, S3Store
from preprocessing.catalog import Catalog, PhotoRow, load_shard, store_shard
from tests.faults.training_runs import prepare
from tests.training_here import train_here

ROOT = Path(__file__).parents[2]
TRAINED = {
    "train.steps": "24",
    "train.batch_size": "6",
    "train.checkpoint_every": "4",
    "train.workers": "1",
    "train.keep_last": "2",
    "train.warmup_steps": "0",
}
_CHILD = (
    "import sys; from infra.settings import Settings; from flows.run import Run; "
    "from tests.training_here import train_here; "
    "train_here(Run(Settings.model_validate_json(open(sys.argv[1]).read())))"
)


def fill(store: ObjectStore) -> None:
    """Two versions of a catalog with three shards, and two releases, the second of which was in production before the
    name was rolled back."""
    catalog = Catalog(store)
    for number in (1, 2):
        photo = PhotoRow("ingest", f"s{number}", f"{number}" * 64, "folder", f"{number}.png", "kept")
        catalog.commit([store_shard(store, "ingest", f"s{number}", "f", f"shard {number}".encode(), 1)], [photo])
    releases = Releases(store)
    for text in ("one", "two"):
        release = releases.publish({"adapter.bin": text.encode() * 1000}, {"run_id": text})
        releases.promote("production", release.id, "passed the gate")
    releases.roll_back("production", "hands")


def says(store: ObjectStore) -> dict[str, object]:
    """All that people would miss."""
    catalog, releases = Catalog(store), Releases(store)
    for row in catalog.shards():
        load_shard(store, row)
    return {
        "version": catalog.version,
        "contents": [catalog.content_digest(version) for version in range(catalog.version + 1)],
        "releases": [(one, releases.manifest(one).data, releases.card(one)) for one in releases.all()],
        "files": [releases.read(one, "adapter.bin") for one in releases.all()],
        "production": releases.history("production"),
    }


def test_a_bucket_is_put_back_into_another_one(s3_store: S3Store, s3_address: str) -> None:
    """Object by object, as `aws s3 sync` does; the keys below the prefix are all there is."""
    fill(s3_store)
    before = says(s3_store)
    client = boto3.client("s3", endpoint_url=s3_address)
    backup, restored = (f"test-{secrets.token_hex(6)}" for _ in range(2))
    for bucket in (backup, restored):
        client.create_bucket(Bucket=bucket)
    for key in s3_store.list():
        client.put_object(Bucket=backup, Key=f"moa/{key}", Body=s3_store.get(key))
    for key in s3_store.list():
        s3_store.delete(key)
    assert Catalog(s3_store).version == -1 and Releases(s3_store).all() == []
    for one in client.list_objects_v2(Bucket=backup)["Contents"]:
        client.copy_object(Bucket=restored, Key=one["Key"], CopySource={"Bucket": backup, "Key": one["Key"]})
    store = S3Store(restored, "moa", s3_address)
    assert says(store) == before
    again = Releases(store).publish({"adapter.bin": b"three"}, {"run_id": "three"})  # and it is a store like any other
    assert again.number == 3


def test_a_training_in_its_middle_goes_on_from_the_copy(tmp_path: Path) -> None:
    """Killed after a checkpoint, backed up, destroyed, restored elsewhere, and ended with the same weights as the
    one that nobody disturbed."""
    undisturbed = prepare(tmp_path, "undisturbed", TRAINED)
    expected = train_here(Run(undisturbed))
    settings = prepare(tmp_path, "killed", TRAINED)
    run = Run(settings)
    fill(run.store)
    run_id = str(plan_training(run, from_scratch=True)["run_id"])
    _killed_after_a_checkpoint(settings, run, run_id)
    step, before = latest_step(run.store, run_id), says(run.store)
    assert 0 < step < 24
    store, backup = Path(settings.store_root), tmp_path / "backup"
    shutil.copytree(store, backup)  # rsync -a STORE/ BACKUP/
    shutil.rmtree(store)
    shutil.copytree(backup, tmp_path / "restored")
    restored = settings.model_copy(
        update={"storage": settings.storage.model_copy(update={"root": str(tmp_path / "restored")})}
    )
    run = Run(restored)
    assert says(run.store) == before and latest_step(run.store, run_id) == step
    assert str(plan_training(run, from_scratch=True)["run_id"]) == run_id
    assert train_here(run)["adapter"] == expected["adapter"]


def test_the_pages_commands_tell_a_whole_copy_from_a_damaged_one(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    fill(store)
    where = ["--workspace", str(tmp_path / "workspace"), "--set", f"storage.root={store.root}"]

    def typed(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*words, *where])
        return done.exit_code, done.stdout

    assert typed("catalog", "verify") == (0, "Nothing is damaged in version 1.\n")
    assert typed("releases", "verify") == (0, "Nothing is damaged.\n")
    shard = Catalog(store).shards()[0]
    store.put(shard.object_key, b"half of it")
    code, said = typed("catalog", "verify")
    assert code == 1 and store.uri(shard.object_key) in said and "1 damaged in version 1." in said
    code, said = typed("catalog", "verify", "--json")
    assert code == 1 and [one["shard"] for one in json.loads(said)["damaged"]] == [shard.shard]
    blob = next(key for key in store.list("blobs/") if store.get(key).startswith(b"two"))
    store.delete(blob)
    code, said = typed("releases", "verify")
    assert code == 1 and store.uri(blob) in said


def _killed_after_a_checkpoint(settings: Settings, run: Run, run_id: str) -> None:
    (path := settings.workspace / "settings.json").write_text(settings.model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (settings.workspace / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(path)], stdout=log, stderr=log, env=environment, cwd=ROOT
        )
        deadline = time.monotonic() + 240
        while not latest_step(run.store, run_id):
            assert child.poll() is None and time.monotonic() < deadline, (settings.workspace / "log").read_text()[
                -2000:
            ]
            time.sleep(0.01)
        child.kill()
        child.wait()
