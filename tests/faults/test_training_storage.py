"""A training whose store, disk or shards fail for a while ends with the weights of one left in peace, bit for bit, and
has seen every sample of every epoch exactly once: real disks that are full, real HTTP that is cut off or answered 500.

`make test-faults` runs it; `FAULTS_SEED` repeats a run's moments.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.storage import S3Store
from preprocessing.catalog import ShardRow
from tests.faults.lost_connection import Relay
from tests.faults.shard_damage import flip_a_bit
from tests.faults.small_disk import MayNotMount, SmallDisk
from tests.faults.training_runs import STEPS, Training
from tests.infra.faulty_s3 import faulty_s3

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
Trainings = Callable[..., Training]


@pytest.fixture
def bucket(s3_store: S3Store) -> str:
    """The address of a store in a new bucket."""
    return f"s3://{s3_store.bucket}/data"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with SmallDisk(tmp_path / "disk", megabytes=24) as disk:
            yield disk
    except MayNotMount as error:
        pytest.skip(f"a disk that runs full has to be mounted, for which one must be root here ({error})")


def test_an_object_store_that_is_away_for_half_a_minute(
    trainings: Trainings, calm: dict[str, Any], chance: random.Random, bucket: str, s3_address: str
) -> None:
    with Relay(int(s3_address.rpartition(":")[2])) as relay:
        store = {"storage__root": bucket, "storage__endpoint_url": relay.address}
        training = trainings("away", **store).start()
        training.workers_at(chance.randrange(STEPS))
        relay.away(30.0)
        assert training.result() == calm


def test_an_object_store_that_answers_500_at_random(
    trainings: Trainings, calm: dict[str, Any], chance: random.Random, bucket: str, s3_address: str
) -> None:
    with faulty_s3(s3_address) as server:
        training = trainings("unreliable", storage__root=bucket, storage__endpoint_url=server.address)
        server.unreliable = chance, 0.1
        found = training.start().result()
        server.unreliable = None
        assert found == calm and server.failed  # a tenth of some hundred requests


def test_a_store_whose_disk_is_full_for_a_while(
    trainings: Trainings, calm: dict[str, Any], chance: random.Random, small_disk: SmallDisk
) -> None:
    training = trainings("full", storage__root=str(small_disk.path)).start()
    training.workers_at(chance.randrange(STEPS))
    # Whatever becomes free meanwhile is taken up as well.
    training.until(lambda: small_disk.fill() or "does not fit on the store's disk" in training.said, "it was said")
    small_disk.clear()
    assert training.result() == calm


def test_a_machine_whose_own_disk_is_full(
    trainings: Trainings,
    calm: dict[str, Any],
    chance: random.Random,
    small_disk: SmallDisk,
    bucket: str,
    s3_address: str,
) -> None:
    """Where shards and checkpoints are put for as long as they are read. It is noticed when a worker starts."""
    training = trainings("own-disk", storage__root=bucket, storage__endpoint_url=s3_address)
    (training.settings.workspace / "cache").symlink_to(small_disk.path / "cache")
    (small_disk.path / "cache").mkdir()
    training.start(environment={"TMPDIR": str(small_disk.path)})
    training.until_saved(4)
    worker = training.workers_at(chance.randrange(4, STEPS))[chance.randrange(2)]
    small_disk.fill(leave=16_384)
    training.kill_worker(worker)
    refused = training.printed()["refused"]
    assert "There is no room left on the disk of" in refused or "cannot be kept in" in refused
    small_disk.clear()
    assert training.start(environment={"TMPDIR": str(small_disk.path)}).result() == calm


def test_a_shard_that_is_damaged_meanwhile_stops_the_training_and_is_named(
    trainings: Trainings, calm: dict[str, Any], chance: random.Random
) -> None:
    training = trainings("damaged").start()
    row = chance.choice(training.run.training_shards())
    sound = training.run.store.get(row.object_key)
    training.workers_at(chance.randrange(STEPS - 8))
    flip_a_bit(Path(training.run.store.uri(row.object_key)), chance)
    assert f"{row.object_key} is damaged" in training.printed()["refused"]
    training.run.store.put(row.object_key, sound)
    assert training.start().result() == calm


def test_a_shard_that_is_damaged_meanwhile_is_passed_over_if_asked(trainings: Trainings, chance: random.Random) -> None:
    """The steps from then on take each sample of the other shards, and none of this one."""
    training = trainings("passed-over", train__damaged_shards="skip").start()
    row = chance.choice(training.run.training_shards())
    left = [key for key in training.keys() if not key.startswith(row.shard)]
    training.workers_at(chance.randrange(STEPS - 12))
    flip_a_bit(Path(training.run.store.uri(row.object_key)), chance)
    found = training.printed()
    assert found["damaged"] == [row.shard] and f"without shard {row.shard} from here on" in training.said
    last = max(training.taken(), key=lambda one: one.step)
    again = [one for one in training.taken() if one.pid in {other.pid for other in training.taken()[-1:]}]
    assert last.step == STEPS - 1 and again
    keys = Counter(key for one in training.taken() if one.at >= again[0].at for key in one.keys)
    assert set(keys) == set(left)


def test_a_copy_of_a_shard_that_is_damaged_is_fetched_anew(
    trainings: Trainings, calm: dict[str, Any], chance: random.Random, bucket: str, s3_address: str
) -> None:
    """One that an earlier training left damaged on this machine, and one that is damaged meanwhile."""
    training = trainings("copies", storage__root=bucket, storage__endpoint_url=s3_address)
    folder = training.settings.workspace / "cache" / "shards"
    folder.mkdir(parents=True)
    rows: list[ShardRow] = training.run.training_shards()
    copy = folder / rows[0].sha256
    copy.write_bytes(training.run.store.get(rows[0].object_key))
    flip_a_bit(copy, chance)
    training.start().workers_at(chance.randrange(STEPS - 8))
    training.until((folder / rows[1].sha256).exists, "there is a copy of the second shard")
    flip_a_bit(folder / rows[1].sha256, chance)
    assert training.result() == calm
    found = {row.sha256: (folder / row.sha256).read_bytes() for row in rows}
    assert found == {row.sha256: training.run.store.get(row.object_key) for row in rows}
