"""Any sample of a shard by number."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.shard_reader import SampleChanged, ShardReader
from preprocessing.shards import UnsafeTar, read_tar, write_tar


@settings(max_examples=50)
@given(contents=st.lists(st.binary(max_size=1500), max_size=6))
def test_every_sample_is_what_reading_the_whole_tar_gives(contents: list[bytes], tmp_path: Path) -> None:
    tar = write_tar((f"k{number}", {"json": b"{}", "npy": data}) for number, data in enumerate(contents))
    path = tmp_path / "shard.tar"
    path.write_bytes(tar)
    shard, expected = ShardReader(path), list(read_tar(tar))
    assert [shard[number] for number in range(len(shard))] == expected


def test_a_removed_file_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(write_tar([("a", {"npy": b"kept"})]))
    shard = ShardReader(path)
    path.unlink()
    assert shard[0].parts == {"npy": b"kept"}


def test_what_is_written_over_it_or_cut_off_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(tar := write_tar([("a", {"npy": b"kept"}), ("b", {"json": b"{}", "npy": b"sound"})]))
    shard = ShardReader(path)
    assert [shard[number].key for number in range(2)] == ["a", "b"]
    with path.open("r+b") as file:
        file.seek(tar.index(b"sound"))
        file.write(b"wound")
    again = ShardReader(path, shard.index)  # opened once more, with what is known of it
    for one in (shard, again):
        assert one[0].parts == {"npy": b"kept"}
        with pytest.raises(SampleChanged, match="b"):
            one[1]
    os.truncate(path, tar.index(b"sound") + 3)
    with pytest.raises(SampleChanged, match="b"):
        shard[1]


def test_a_reader_that_is_let_go_keeps_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(write_tar([("a", {"npy": b"kept"})]))
    before = len(os.listdir("/proc/self/fd"))
    sample = ShardReader(path)[0]
    assert len(os.listdir("/proc/self/fd")) == before and sample.parts == {"npy": b"kept"}


def test_a_tar_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(write_tar([("a", {"npy": b"x" * 600})])[:700])
    with pytest.raises(UnsafeTar):
        ShardReader(path)
