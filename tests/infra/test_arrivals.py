"""Noticing new objects: in a real folder and on a real S3 server."""

import random
import socket
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from infra.arrivals import NOTHING, Arrivals, listing, look, unpacked
from infra.ports import free_ports
from infra.storage import S3Store


def test_new_names_are_counted_whatever_the_order_and_whatever_left() -> None:
    names = [f"photos/{number:05d}.jpg" for number in range(5000)]
    random.shuffle(names)
    before, after = look((name, 1) for name in names[:3000]), look((name, 1) for name in names)
    assert after.new_since(before) == 2000 and before.new_since(after) == 0
    assert after.new_since(NOTHING) == after.total == 5000
    assert look((name, 1) for name in reversed(names)) == after == unpacked(after.packed())


def test_one_that_left_and_one_that_came_in_its_place_are_noticed() -> None:
    before, after = look([("a", 1)]), look([("b", 1)])
    assert after.new_since(before) == 1


def test_a_hundred_thousand_at_once_take_no_memory_to_speak_of(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "state.sqlite", 0.0, 60.0)
    tracemalloc.start()
    found = look((f"prefix/{number:06d}.jpg", 1000) for number in range(100_000))
    batch = arrivals.due(1.0, found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert batch is not None and batch.count == 100_000 and batch.bytes == 100_000_000
    assert peak < 2_000_000  # a set of their names would be over ten
    assert (tmp_path / "state.sqlite").stat().st_size < 1_000_000


def test_a_batch_waits_until_it_is_quiet_or_has_waited_long_enough(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "state.sqlite", quiet_seconds=10, longest_wait_seconds=25)
    assert arrivals.due(0, look([])) is None
    assert arrivals.due(1, look([("a", 1)])) is None
    assert arrivals.due(9, look([("a", 1), ("b", 1)])) is None
    assert arrivals.due(18, look([("a", 1), ("b", 2)])) is None  # b grows
    batch = arrivals.due(28, look([("a", 1), ("b", 2)]))
    assert batch is not None and (batch.count, batch.bytes, batch.began, batch.ended) == (2, 3, 1, 28)
    arrivals.told(batch)
    assert arrivals.due(29, look([("a", 1), ("b", 2)])) is None
    for second in range(30, 55, 5):
        assert arrivals.due(second, look((str(one), 1) for one in range(second))) is None
    stream = arrivals.due(55, look((str(one), 1) for one in range(55)))
    assert stream is not None and stream.began == 30


def test_a_watcher_that_is_killed_at_any_point_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Each look is a process of its own; some are killed between telling and writing down that it was told."""
    dice, names, told = random.Random(7), list[str](), dict[str, int]()
    for second in range(150):
        if dice.random() < 0.3:
            names += [f"{second}-{one}" for one in range(dice.randrange(1, 50))]
        arrivals = Arrivals(tmp_path / "state.sqlite", quiet_seconds=3, longest_wait_seconds=20)
        batch = arrivals.due(second, look((name, 1) for name in names))
        if batch is not None:
            assert told.get(batch.name, batch.count) == batch.count
            told[batch.name] = batch.count  # by its name whoever hears it twice knows it
            if dice.random() < 0.5:
                arrivals.told(batch)
    assert len(told) > 10
    rest = Arrivals(tmp_path / "state.sqlite", 0, 0)
    for second in (1000, 1001):
        if (batch := rest.due(second, look((name, 1) for name in names))) is not None:
            told[batch.name] = batch.count
            rest.told(batch)
    assert rest.due(1002, look((name, 1) for name in names)) is None
    assert sum(told.values()) == len(names)


def test_what_was_taken_away_counts_where_it_comes_again(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "state.sqlite", 0, 60)
    for second, names, count in ((1, {"a", "b"}, 2), (2, {"a"}, 0), (3, {"a", "b"}, 1)):
        batch = arrivals.due(second, look((name, 1) for name in names))
        assert (batch.count if batch else 0) == count
        if batch:
            arrivals.told(batch)


def test_a_folder_is_listed_with_what_is_in_it_but_for_hidden_files(tmp_path: Path) -> None:
    assert list(listing(str(tmp_path / "absent"))) == []
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg", "sub/.c.jpg.partial"):
        (tmp_path / name).write_bytes(b"xyz")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    found = sorted(listing(str(tmp_path)))
    assert found == [(str(tmp_path / "a.jpg"), 3), (str(tmp_path / "sub" / "b.jpg"), 3)]
    assert list(listing(str(tmp_path / "a.jpg"))) == [(str(tmp_path / "a.jpg"), 3)]


def test_an_s3_prefix_is_listed_page_by_page(s3_store: S3Store, s3_address: str) -> None:
    client = boto3.client("s3", endpoint_url=s3_address)

    def put(number: int) -> None:
        client.put_object(Bucket=s3_store.bucket, Key=f"photos/{number:04d}.jpg", Body=b"12")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(1100)))  # a page has a thousand
    for other in ("photos/.hidden", "photos/folder/", "elsewhere.jpg"):
        client.put_object(Bucket=s3_store.bucket, Key=other, Body=b"")
    found = look(listing(f"s3://{s3_store.bucket}/photos/", s3_address))
    assert (found.total, found.size) == (1100, 2200)


@pytest.mark.faults  # two minutes, most of them the server's own
@pytest.mark.timeout(900)
def test_a_hundred_thousand_objects_on_a_server(s3_address: str, tmp_path: Path) -> None:
    """Told as one batch, in memory that does not grow with them."""
    count, (port,) = 100_000, free_ports(1)
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port), "many", str(count)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while not _listens(port):
                assert server.poll() is None
                time.sleep(0.2)
            place, address = "s3://many/photos/", f"http://127.0.0.1:{port}"
            arrivals = Arrivals(tmp_path / "state.sqlite", 0, 60)
            look(listing(place + "00/", address))  # boto3's own
            tracemalloc.start()
            batch = arrivals.due(1.0, look(listing(place, address)))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        finally:
            server.kill()
    assert batch is not None and (batch.count, batch.bytes) == (count, 2 * count)
    assert peak < 20e6, f"{peak / 1e6:.0f} MB"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_folder_of_a_hundred_thousand_files(tmp_path: Path) -> None:
    """Real files, told as one batch."""
    count = 100_000
    for folder in range(10):
        (tmp_path / "photos" / str(folder)).mkdir(parents=True)
    for number in range(count):
        (tmp_path / "photos" / str(number % 10) / f"{number}.jpg").touch()
    arrivals = Arrivals(tmp_path / "state.sqlite", 0, 60)
    batch = arrivals.due(1.0, look(listing(str(tmp_path / "photos"))))
    assert batch is not None and batch.count == count
