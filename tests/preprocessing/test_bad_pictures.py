"""Every damaged, odd and hostile picture of the corpus is kept or refused for a reason; the counts add up."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage import DirectoryStore
from preprocessing.catalog import KEPT, Catalog, ShardRow
from preprocessing.ingesting import ingest_chunk
from preprocessing.photos import PhotoRefused, Reason, decode
from preprocessing.shards import decode_picture, read_tar
from preprocessing.sources import open_source
from tests.preprocessing.bad_pictures import MAX_PIXELS, MIN_SIDE, SIZE, Case, corpus, whole_files

CORPUS = corpus()


class Limits:
    """The settings of the ingest that the corpus was made for."""

    pixels, min_side, max_pixels = 32, MIN_SIDE, MAX_PIXELS


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_each_is_kept_or_refused_for_its_reason(case: Case) -> None:
    try:
        image = decode(case.data, MIN_SIDE, MAX_PIXELS)
    except PhotoRefused as refusal:
        assert refusal.reason == case.fate, refusal.detail
        # The row goes into a table that is the same every time: one short line, no addresses.
        assert len(refusal.detail) <= 200 and refusal.detail.isprintable() and " at 0x" not in refusal.detail
    else:
        assert case.fate is None
        assert image.mode == "RGB" and not image.info and min(image.size) >= MIN_SIDE


@pytest.mark.parametrize("number", range(10))
def test_what_is_around_the_pixels_does_not_change_them(number: int) -> None:
    cases = {case.name: case.data for case in CORPUS}
    turned = decode(cases[f"orientation-{number}"], MIN_SIDE, MAX_PIXELS)
    assert turned.size == (SIZE if number < 5 or number == 9 else SIZE[::-1])
    if number in (0, 1, 9):
        assert turned.tobytes() == decode(cases["whole-jpeg"], MIN_SIDE, MAX_PIXELS).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as somebody's folder of photos, each under its kind's or another kind's extension."""
    root = tmp_path_factory.mktemp("photos")
    for number, case in enumerate(CORPUS):
        (root / f"{case.name.replace('%', '')}.{('jpg', 'png', 'webp')[number % 3]}").write_bytes(case.data)
    return root


def test_the_counts_of_the_whole_corpus_add_up(folder: Path, tmp_path: Path) -> None:
    records = list(open_source(f"folder:{folder}").records())
    assert len(records) == len(CORPUS) >= 150
    done = ingest_chunk(records, frozenset(), Limits())
    assert [row.origin for row in done.rows] == [record.origin for record in records] and done.tar is not None
    samples = list(read_tar(done.tar))
    assert all(decode_picture(sample.parts["jpg"]).size == (32, 32) for sample in samples)
    catalog = Catalog(DirectoryStore(tmp_path))
    catalog.commit([ShardRow("ingest", done.shard_id, "f", "k", "0" * 64, len(samples))], done.rows)
    counts = catalog.counts()
    expected = Counter(case.fate.value for case in CORPUS if case.fate is not None)
    # Of files with the same bytes one is kept.
    kept = [case for case in CORPUS if case.fate is None]
    expected["duplicate"] = len(kept) - len({case.data for case in kept})
    assert counts.refused == {reason: count for reason, count in expected.items() if count}
    assert counts.seen == len(CORPUS) == counts.kept + sum(counts.refused.values())
    assert counts.kept == len(samples) == sum(row.status == KEPT for row in done.rows)


PEAK = """
import sys
from pathlib import Path
from preprocessing.photos import PhotoRefused, decode

def peak():
    # getrusage's ru_maxrss begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
before = peak()
for data in files:
    try:
        decode(data, 16, 1_000_000)
    except PhotoRefused:
        pass
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_no_bomb_takes_memory(folder: Path) -> None:
    """Unpacked they would be gigabytes; a picture of max_pixels is 4 MB, a few copies of it are in order."""
    command = [sys.executable, "-c", PEAK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert float(done.stdout) < 100


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A whole file with bytes changed, slices cut out, doubled, moved or taken from another file, and its end cut."""
    files = list(whole_files((20, 18)).values())
    data = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 5))):
        start, length = draw(st.integers(0, len(data))), draw(st.integers(0, 64))
        from_others = [other[start : start + length] for other in files]
        new = draw(st.one_of(st.binary(max_size=8), st.sampled_from([*from_others, b"", b"\xff" * 4, data[start:]])))
        data = data[:start] + new + data[start + length :]
    return data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]


@given(data=mutated())
@settings(max_examples=300)
def test_mutated_files_are_pictures_or_refused(data: bytes) -> None:
    try:
        image = decode(data, MIN_SIDE, MAX_PIXELS)
    except PhotoRefused as refusal:
        assert isinstance(refusal.reason, Reason)
    else:
        assert image.mode == "RGB" and min(image.size) >= MIN_SIDE and image.width * image.height <= MAX_PIXELS
