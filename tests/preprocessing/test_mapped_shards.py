"""Any sample of a shard by number."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.mapped_shards import MappedShard
from preprocessing.shards import UnsafeTar, read_tar, write_tar


@settings(max_examples=50)
@given(contents=st.lists(st.binary(max_size=1500), max_size=6))
def test_every_sample_is_what_reading_the_whole_tar_gives(contents: list[bytes], tmp_path: Path) -> None:
    tar = write_tar((f"k{number}", {"json": b"{}", "npy": data}) for number, data in enumerate(contents))
    path = tmp_path / "shard.tar"
    path.write_bytes(tar)
    shard, expected = MappedShard(path), list(read_tar(tar))
    assert [shard[number] for number in range(len(shard))] == expected


def test_a_removed_file_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(write_tar([("a", {"npy": b"kept"})]))
    shard = MappedShard(path)
    path.unlink()
    assert shard[0].parts == {"npy": b"kept"}


def test_what_is_written_over_it_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(tar := write_tar([("a", {"npy": b"kept"}), ("b", {"json": b"{}", "npy": b"sound"})]))
    shard = MappedShard(path)
    assert all(shard.intact(number, shard[number]) for number in range(2))
    with path.open("r+b") as file:
        file.seek(tar.index(b"sound"))
        file.write(b"wound")
    assert shard[1].parts["npy"] == b"wound", "it is read where it lies"
    again = MappedShard(path, shard.index)  # opened once more, with what is known of it
    for one in (shard, again):
        assert one.intact(0, one[0]) and not one.intact(1, one[1])


def test_a_tar_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(write_tar([("a", {"npy": b"x" * 600})])[:700])
    with pytest.raises(UnsafeTar):
        MappedShard(path)
