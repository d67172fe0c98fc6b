"""Shards: the same samples give the same bytes, webdataset reads them, and nothing hostile gets in."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.shards import (
    MAX_PART_BYTES,
    UnsafeTar,
    decode_instances,
    decode_npy,
    decode_picture,
    encode_instances,
    encode_json,
    encode_npy,
    open_picture,
    read_tar,
    split_samples,
    write_tar,
)

KEYS = st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True)
EXTENSIONS = st.sampled_from(["jpg", "json", "instances.png", "moments.npy", "image_embeds.npy"])
SAMPLES = st.dictionaries(KEYS, st.dictionaries(EXTENSIONS, st.binary(max_size=1500), min_size=1), max_size=5)


@given(samples=SAMPLES)
def test_what_is_written_is_read(samples: dict[str, dict[str, bytes]]) -> None:
    tar = write_tar(samples.items())
    assert {sample.key: sample.parts for sample in read_tar(tar)} == samples
    assert write_tar(reversed(list(samples.items()))) == tar


@given(samples=SAMPLES)
def test_the_tar_says_nothing_of_time_and_machine(samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(write_tar(samples.items()))) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def by_tarfile(samples: dict[str, dict[str, bytes]]) -> bytes:
    """The same shard by the standard library's writer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key in sorted(samples):
            for extension in sorted(samples[key]):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(samples[key][extension])
                tar.addfile(info, io.BytesIO(samples[key][extension]))
    return buffer.getvalue()


@given(samples=SAMPLES)
def test_the_bytes_are_those_of_the_standard_library(samples: dict[str, dict[str, bytes]]) -> None:
    assert write_tar(samples.items()) == by_tarfile(samples)


@pytest.mark.parametrize("content", [8192, 8704, 9216, 9728, 10240])  # around the end of tar's record of 10240 bytes
def test_a_tar_ends_on_a_whole_record(content: int) -> None:
    samples = {"a": {"jpg": bytes(content - 512)}}
    assert write_tar(samples.items()) == by_tarfile(samples)


@given(samples=SAMPLES, most=st.integers(1, 4), limit=st.integers(1, 30_000))
def test_no_part_is_above_the_limits_and_nothing_is_lost(
    samples: dict[str, dict[str, bytes]], most: int, limit: int
) -> None:
    runs = split_samples(samples.items(), most, limit)
    assert [sample for run in runs for sample in run] == sorted(samples.items())
    assert all(runs) or runs == [[]]
    for number, run in enumerate(runs):
        assert len(run) <= most
        assert len(write_tar(run)) <= limit or len(run) <= 1
        if number:  # no shard is begun before it is needed
            together = [*runs[number - 1], run[0]]
            assert len(together) > most or len(write_tar(together)) > limit


def test_webdataset_reads_it(tmp_path: Path) -> None:
    import webdataset

    samples = {f"{i:064x}": {"json": encode_json({"i": i}), "instances.png": b"png"} for i in range(3)}
    path = tmp_path / "shard.tar"
    path.write_bytes(write_tar(samples.items()))
    read = {
        sample["__key__"]: {"json": sample["json"], "instances.png": sample["instances.png"]}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    assert read == samples


def test_names_that_cannot_be_read_back_are_not_written() -> None:
    unusable = [
        ("a/b", "jpg"),
        ("..", "jpg"),
        ("a.b", "jpg"),
        ("a", "JPG"),
        ("", "jpg"),
        ("a", "../x"),
        ("a", "x" * 99),
    ]
    for key, extension in unusable:
        with pytest.raises(ValueError, match="cannot be a file of a shard"):
            write_tar([(key, {extension: b""})])
    with pytest.raises(ValueError, match="two samples"):
        write_tar([("a", {"jpg": b""}), ("a", {"json": b""})])


def hostile(*members: tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/b.jpg", "..", "x", "a.b c", ".hidden", "a\nb.jpg"])
def test_paths_are_refused(name: str) -> None:
    with pytest.raises(UnsafeTar, match="not allowed"):
        list(read_tar(hostile(member(name))))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_all_but_plain_files_are_refused(kind: bytes) -> None:
    with pytest.raises(UnsafeTar, match="not a plain file"):
        list(read_tar(hostile(member("a.jpg", kind, target="/etc/passwd"))))


def test_long_name_extensions_are_refused() -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(UnsafeTar, match="not a plain file"):
            list(read_tar(hostile(member("a" * 150 + ".jpg"), form=form)))


@pytest.mark.parametrize("size", [MAX_PART_BYTES + 1, 2**40, -512])
def test_sizes_beyond_reason_are_refused(size: int) -> None:
    header = member("a.jpg", size=size).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(UnsafeTar, match="claims"):
        list(read_tar(header + bytes(2048)))


def test_a_file_twice_and_a_sample_in_pieces_are_refused() -> None:
    with pytest.raises(UnsafeTar, match="twice"):
        list(read_tar(hostile(member("a.jpg"), member("a.jpg"))))
    with pytest.raises(UnsafeTar, match="two pieces"):
        list(read_tar(hostile(member("a.jpg"), member("b.jpg"), member("a.json"))))


def test_a_cut_tar_is_refused_wherever_it_is_cut() -> None:
    tar = write_tar([("a", {"jpg": b"x" * 700, "json": b"{}"})])
    end = 512 + 1024 + 512 + 512  # the two files with their headers
    for length in range(0, end, 97):
        with pytest.raises(UnsafeTar):
            list(read_tar(tar[:length]))


@settings(max_examples=200)
@given(position=st.integers(0, 2559), value=st.integers(0, 255))
def test_a_flipped_byte_is_read_or_refused(position: int, value: int) -> None:
    tar = bytearray(write_tar([("a", {"jpg": b"x" * 700, "json": b"{}"})]))
    tar[position] = value
    try:
        assert all(sample.key for sample in read_tar(bytes(tar)))
    except UnsafeTar:
        pass


@st.composite
def mutated_tars(draw: st.DrawFn) -> bytes:
    """A shard with blocks cut out, doubled, moved or overwritten, and bytes of its headers changed."""
    data = write_tar([("a", {"jpg": b"x" * 700, "json": b"{}"}), ("b", {"jpg": bytes(512), "instances.png": b""})])
    links = hostile(member("a.jpg", tarfile.SYMTYPE, target="/etc/passwd"), member("c.jpg", size=3))
    for _ in range(draw(st.integers(1, 4))):
        start, length = 512 * draw(st.integers(0, 10)), 512 * draw(st.integers(0, 4))
        place = start + draw(st.integers(0, 511))
        changed = data[:place] + draw(st.binary(max_size=12)) + data[place:]
        pieces = [changed, data[:start] + data[start + length :], data[:start] + links + data[start:]]
        data = draw(st.sampled_from([*pieces, data[:start] + data[start : start + length] * 2 + data[start:]]))
    return data


@given(data=mutated_tars())
@settings(max_examples=300)
def test_a_mutated_tar_is_read_or_refused(data: bytes) -> None:
    try:
        samples = list(read_tar(data))
    except UnsafeTar:
        return
    assert len({sample.key for sample in samples}) == len(samples)
    parts = [part for sample in samples for part in sample.parts.values()]
    assert all(parts_of.parts for parts_of in samples) and sum(map(len, parts)) < len(data)


@given(data=st.binary(max_size=3000))
def test_noise_is_refused(data: bytes) -> None:
    try:
        assert list(read_tar(data)) == []  # zeros are an empty tar
    except UnsafeTar:
        pass


def test_arrays_hold_no_objects() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert np.array_equal(decode_npy(encode_npy(array)), array)
    with pytest.raises(ValueError):
        encode_npy(np.array([{}], dtype=object))
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError):
        decode_npy(buffer.getvalue())


def test_instance_maps() -> None:
    instances = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(decode_instances(encode_instances(instances)), instances)
    colour = io.BytesIO()
    Image.new("RGB", (2, 2)).save(colour, "PNG")
    with pytest.raises(ValueError, match="8-bit grey"):
        decode_instances(colour.getvalue())


def test_an_opened_picture_is_decoded_when_it_is_looked_at() -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 48), (10, 200, 90)).save(encoded, "JPEG")
    assert np.array_equal(open_picture(encoded.getvalue()), decode_picture(encoded.getvalue()))
    cut_off = open_picture(encoded.getvalue()[:-40])
    assert cut_off.size == (64, 48) and cut_off.mode == "RGB"
    with pytest.raises(OSError):
        cut_off.convert("L")
    grey = io.BytesIO()
    Image.new("L", (2, 2), 7).save(grey, "PNG")
    assert open_picture(grey.getvalue()).getpixel((0, 0)) == (7, 7, 7)


def test_json_is_plain_json() -> None:
    assert encode_json({"b": "é", "a": 1}) == '{"a": 1, "b": "é"}'.encode()
    with pytest.raises(ValueError):
        encode_json({"a": float("nan")})
