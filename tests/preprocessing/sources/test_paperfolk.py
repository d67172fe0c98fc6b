"""Paperfolk on disk, as the readers of the real collections see it."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from preprocessing.catalog import KEPT
from preprocessing.ingesting import ingest_chunk
from preprocessing.photos import Reason
from preprocessing.shards import read_tar
from preprocessing.sources import open_source, paperfolk
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at, random_identity

LIMITS = SimpleNamespace(pixels=64, min_side=32, max_pixels=100_000_000)
EVERY = 4  # one photo in four is damaged here: all flaws, twice, in 64 photos
REASONS = {
    "truncated": Reason.TRUNCATED,
    "empty": Reason.EMPTY_FILE,
    "text": Reason.NOT_AN_IMAGE,
    "duplicate": Reason.DUPLICATE,
    "tiny": Reason.TOO_SMALL,
    "wrong digest": Reason.CHECKSUM_MISMATCH,
    "missing": Reason.MISSING_FILE,
    "header only": Reason.TOO_LARGE,
}


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_ffhq_is_read_by_its_reader(tmp_path: Path) -> None:
    paperfolk.write_ffhq(tmp_path, 12, seed=0, flaws=False, processes=1)
    records = list(open_source(f"ffhq:{tmp_path}").records())
    assert [record.origin for record in records] == [f"images1024x1024/00000/{index:05d}.png" for index in range(12)]
    assert all(record.problem is None and record.author == "Paperfolk" for record in records)
    assert all("CC0" in record.license for record in records)
    truth = paperfolk.read_truth(tmp_path)
    assert list(truth) == [record.origin for record in records]
    chunk = ingest_chunk(records, set(), LIMITS)
    assert [row.status for row in chunk.rows] == [KEPT] * 12 and chunk.tar is not None
    assert len(list(read_tar(chunk.tar))) == 12
    for index, record in enumerate(records):
        picture = picture_at(0, index)
        drawing, known = draw(picture), truth[record.origin]
        assert (np.asarray(Image.open(record.path)) == np.asarray(drawing.image)).all()
        assert (known.instances() == drawing.instances).all() and known.instances().dtype == np.uint8
        assert known.caption == picture.caption
        assert known.words == tuple(person.identity.word for person in picture.people)
        assert known.looks == tuple(person.identity.appearance for person in picture.people)
        assert len(known.identities) == len(picture.people)
        # The reader's face, from the 68 landmarks, is the first person's.
        assert record.faces is not None
        x, y = record.faces[0].center
        assert drawing.instances[round(y), round(x)] == 1


def test_every_flaw_is_refused_for_its_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paperfolk, "_EVERY", EVERY)
    paperfolk.write_ffhq(tmp_path, 64, seed=0, processes=1)
    chunk = ingest_chunk(list(open_source(f"ffhq:{tmp_path}").records()), set(), LIMITS)
    found = {row.origin: row.reason for row in chunk.rows}
    expected = {}
    for number, index in enumerate(range(EVERY - 1, 64, EVERY)):
        origin = f"images1024x1024/00000/{index:05d}.png"
        expected[origin] = REASONS[paperfolk._FLAWS[number % len(REASONS)]].value
    assert {origin: reason for origin, reason in found.items() if reason} == expected
    assert Counter(row.status for row in chunk.rows) == {KEPT: 48, "refused": 16}


def test_one_photo_in_a_hundred_is_damaged(tmp_path: Path) -> None:
    paperfolk.write_ffhq(tmp_path, 100, seed=1, pixels=32)
    chunk = ingest_chunk(list(open_source(f"ffhq:{tmp_path}").records()), set(), LIMITS)
    assert [(row.origin[-9:], row.reason) for row in chunk.rows if row.reason] == [("00099.png", "truncated")]


def test_it_grows_and_is_what_it_would_have_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paperfolk, "_EVERY", EVERY)
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    for count in (5, 20, 20, 36):
        paperfolk.write_ffhq(grown, count, seed=0, pixels=32, processes=1)
    paperfolk.write_ffhq(whole, 36, seed=0, pixels=32, processes=2)
    assert tree(grown) == tree(whole)


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    for seed in (0, 1):
        paperfolk.write_ffhq(tmp_path / str(seed), 3, seed, pixels=32, processes=1)
    first, second = tree(tmp_path / "0"), tree(tmp_path / "1")
    assert list(first) == list(second) and not set(first.values()) & (set(second.values()) - {first["LICENSE.txt"]})


def test_killed_and_started_again_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; from pathlib import Path; from preprocessing.sources import paperfolk\n"
        f"paperfolk._EVERY = {EVERY}\n"
        "paperfolk.write_ffhq(Path(sys.argv[1]), 100, 0, 32)"
    )
    root = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", program, str(root)], start_new_session=True)
    while process.poll() is None and sum(1 for _ in root.rglob("*.png")) < 40:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.wait()
    monkeypatch.setattr(paperfolk, "_EVERY", EVERY)
    paperfolk.write_ffhq(root, 100, 0, 32)
    paperfolk.write_ffhq(tmp_path / "whole", 100, 0, 32)
    assert tree(root) == tree(tmp_path / "whole")


def test_celeba_is_read_by_its_reader(tmp_path: Path) -> None:
    paperfolk.write_celeba(tmp_path, people=4, photos_each=3, seed=0)
    before = tree(tmp_path)
    paperfolk.write_celeba(tmp_path, people=4, photos_each=3, seed=0)
    assert tree(tmp_path) == before
    records = list(open_source(f"celeba:{tmp_path}").records())
    assert all(record.problem is None and record.split == "test" for record in records)
    assert Counter(record.identity for record in records) == {str(number): 3 for number in range(1, 5)}
    chunk = ingest_chunk(records, set(), LIMITS)
    assert [row.status for row in chunk.rows] == [KEPT] * 12
    for number, record in enumerate(records):
        person = random_identity(np.random.default_rng([0, 1_000_000 + number // 3 + 1]))
        assert record.word == person.word
        assert record.faces is not None and len(record.faces) == 1
        x, y = record.faces[0].center
        assert 16 < x < 48 and 12 < y < 52


def test_people_of_the_evaluation_are_not_in_the_training_photos(tmp_path: Path) -> None:
    trained = {person.identity for index in range(1200) for person in picture_at(0, index).people}
    evaluated = {identity for _, identity, _ in paperfolk._portraits(24, 1, 0)}
    assert len(evaluated) == 24 and not trained & evaluated


def test_attributes_are_celebas_forty() -> None:
    assert len(paperfolk.CELEBA_ATTRIBUTES) == 40 == len(set(paperfolk.CELEBA_ATTRIBUTES))
    person = random_identity(np.random.default_rng(0))
    row = dict(zip(paperfolk.CELEBA_ATTRIBUTES, paperfolk._attributes(person), strict=True))
    assert set(row.values()) == {1, -1} and (row["Male"] == 1) == (person.word == "man")


def test_names_follow_looks() -> None:
    rng = np.random.default_rng(0)
    people = [random_identity(rng) for _ in range(200)]
    assert len({paperfolk.identity_name(person) for person in people}) == len(set(people))
