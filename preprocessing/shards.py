"""Webdataset shards: tar files whose bytes depend on their content alone, read back without trusting them.

A sample is a run of files `{key}.{extension}`; the key ends at the first dot, as webdataset has it.
"""

import io
import json
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_BLOCK = 512
_RECORD = 20 * _BLOCK  # what tar writes at once; the end mark fills the last one
_NAME = re.compile(r"(?P<key>[0-9A-Za-z][0-9A-Za-z_-]{0,63})\.(?P<extension>[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?)")
# A sample of the largest preset is below 2 MB; nothing that claims much more is one of ours.
MAX_PART_BYTES = 64 * 2**20
_MAX_MASK_PIXELS = 100_000_000
# A header after its checksum: plain file, no link, no owner, no device. The sum takes the checksum itself as blanks.
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
_REST_SUM = sum(_REST) + 8 * ord(" ")
_OWNER, _TIME = (
    b"0000644\0" + b"0000000\0" * 2,
    b"\0" + b"0" * 11 + b"\0",
)  # mode, owner, group; the size's end and time
_CONSTANT_SUM = sum(_OWNER) + sum(_TIME) + _REST_SUM

Part = bytes | memoryview
"""One file's bytes, or a view of them."""
# A sample that is to be written: its key, and its files by extension.
KeyedParts = tuple[str, Mapping[str, Part]]


class UnsafeTar(ValueError):
    """A tar that this module would not have written: it is refused as a whole."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: its key and its files by extension ("jpg", "json", "instances.png", "moments.npy" ...)."""

    key: str
    parts: dict[str, Part]

    def json(self) -> dict[str, Any]:
        """The parsed `.json`; ValueError where it is not an object."""
        value = json.loads(bytes(self.parts["json"]))
        if not isinstance(value, dict):
            raise ValueError(f"{self.key}.json is not a JSON object")
        return value


def write_tar(samples: Iterable[KeyedParts]) -> bytes:
    """The samples as one uncompressed tar; the same samples in any order give the same bytes."""
    return b"".join(tar_pieces(samples))


def tar_pieces(samples: Iterable[KeyedParts]) -> list[bytes]:
    """The tar of `write_tar` in pieces: headers, the samples' own bytes, zeros. Writing them copies no sample."""
    ordered = sorted(samples, key=lambda sample: sample[0])
    pieces: list[bytes] = []
    length = 0
    for position, (key, parts) in enumerate(ordered):
        if position and ordered[position - 1][0] == key:
            raise ValueError(f"two samples have the key {key!r}")
        for extension in sorted(parts):
            content = parts[extension]
            pieces += (_header(key, extension, len(content)), bytes(content), bytes(-len(content) % _BLOCK))
            length += _member_bytes(content)
    return [*pieces, bytes(_tail_bytes(length))]


def split_samples(samples: Iterable[KeyedParts], max_photos: int, max_bytes: int) -> list[list[KeyedParts]]:
    """The samples, sorted by key, in runs whose tars hold at most so many photos and bytes; at least one empty run.

    A sample that is larger than `max_bytes` on its own is a run of its own.
    """
    runs: list[list[KeyedParts]] = [[]]
    length = 0
    for key, parts in sorted(samples, key=lambda sample: sample[0]):
        more = sum(map(_member_bytes, parts.values()))
        together = length + more
        if runs[-1] and (len(runs[-1]) == max_photos or together + _tail_bytes(together) > max_bytes):
            runs.append([])
            length = 0
        runs[-1].append((key, parts))
        length += more
    return runs


def _header(key: str, extension: str, size: int) -> bytes:
    """A ustar header (POSIX.1-1988) of a plain file, mode 0644, with time, owner and group zero.

    Byte for byte what tarfile writes, in a tenth of its time: with members of a few kilobytes that is half of the work.
    """
    name = f"{key}.{extension}"
    match = _NAME.fullmatch(name)
    if match is None or match["key"] != key or len(name) > 100:
        raise ValueError(f"{name!r} cannot be a file of a shard")
    if size >= 8**11:
        raise ValueError(f"{name!r} has {size} bytes, more than a tar's header can say")
    before = name.encode().ljust(100, b"\0") + _OWNER + b"%011o" % size + _TIME
    return before + b"%06o\0 " % (sum(before) + _REST_SUM) + _REST


def _member_bytes(content: Part) -> int:
    return _BLOCK + len(content) + -len(content) % _BLOCK


def _tail_bytes(length: int) -> int:
    """Zeros after `length` bytes of members: two empty blocks, and on to a whole record."""
    return 2 * _BLOCK + -(length + 2 * _BLOCK) % _RECORD


def read_tar(data: bytes) -> Iterator[Sample]:
    """The samples of a tar in its order. Nothing is extracted, no path is opened.

    Only plain files with whitelisted names are accepted: links, devices, folders, long-name and pax extensions, names
    with a slash, sizes beyond the data or `MAX_PART_BYTES`, a file twice, a sample in two pieces raise UnsafeTar.
    """
    for key, spans in sample_spans(data):
        yield Sample(key, {extension: data[start : start + size] for extension, (start, size) in spans.items()})


def sample_spans(data: bytes | mmap) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Each sample's key and where its files lie, by extension: first byte and size. UnsafeTar as by `read_tar`."""
    key, done = "", set[str]()
    spans: dict[str, tuple[int, int]] = {}
    for name, start, size in _members(data):
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnsafeTar(f"name {name!r} is not allowed in a shard")
        if match["key"] != key:
            if spans:
                yield key, spans
            done.add(key)
            key, spans = match["key"], {}
            if key in done:
                raise UnsafeTar(f"sample {key!r} comes in two pieces")
        if match["extension"] in spans:
            raise UnsafeTar(f"file {name!r} comes twice")
        spans[match["extension"]] = start, size
    if spans:
        yield key, spans


def without_samples(data: bytes, keys: Collection[str]) -> bytes:
    """The tar without some of its samples; the others keep their bytes."""
    if not keys:
        return data
    return write_tar((sample.key, sample.parts) for sample in read_tar(data) if sample.key not in keys)


def _members(data: bytes | mmap) -> Iterator[tuple[str, int, int]]:
    # Headers are walked here and not by TarFile, whose iteration follows whatever offsets and extensions a file claims.
    offset = 0
    while True:
        header = data[offset : offset + _BLOCK]
        if len(header) < _BLOCK:
            raise UnsafeTar("the tar ends before its end mark")
        name, size = _own_header(header) or _any_header(header, offset)
        if not name:
            return
        start = offset + _BLOCK
        if not 0 <= size <= MAX_PART_BYTES:
            raise UnsafeTar(f"{name!r} claims {size} bytes, at most {MAX_PART_BYTES} are allowed")
        if start + size > len(data):
            raise UnsafeTar(f"{name!r} is cut off")
        yield name, start, size
        offset = start + -(-size // _BLOCK) * _BLOCK


def _own_header(header: bytes) -> tuple[str, int] | None:
    """Name and size, where the header is one that `_header` writes; a tenth of `TarInfo.frombuf`'s time."""
    if header[100:124] != _OWNER or header[135:148] != _TIME or header[156:] != _REST:
        return None
    try:
        size, checksum = int(header[124:135], 8), int(header[148:154], 8)
        named = header[: header.index(0)]
        name = named.decode("ascii")
    except ValueError:
        return None
    own = sum(named) + sum(header[124:135]) + _CONSTANT_SUM
    return (name, size) if name and checksum == own and header[:100] == named.ljust(100, b"\0") else None


def _any_header(header: bytes, offset: int) -> tuple[str, int]:
    """Name and size by a header of anybody's; ("", 0) for the end mark."""
    if not any(header):
        return "", 0
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeError, ValueError) as error:
        raise UnsafeTar(f"bad tar header at byte {offset}: {error}") from error
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise UnsafeTar(f"{member.name!r} is not a plain file")
    if not member.name:
        raise UnsafeTar(f"the file at byte {offset} has no name")
    return member.name, member.size


def encode_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys; ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def encode_npy(array: np.ndarray) -> bytes:
    """A numpy array without objects as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: Part) -> np.ndarray:
    """The array in a .npy file; ValueError for pickled objects and damaged files."""
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def encode_instances(instances: UInt8[np.ndarray, "h w"]) -> bytes:
    """An instance map (0 = nobody, k = subject k) as a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(instances)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_instances(data: Part) -> UInt8[np.ndarray, "h w"]:
    """The instance map in a grey PNG; ValueError for any other file."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.mode != "L" or image.width * image.height > _MAX_MASK_PIXELS:
            raise ValueError(f"an instance map is an 8-bit grey PNG, not {image.mode} {image.width}x{image.height}")
        return np.array(image)


def open_picture(data: Part) -> Image.Image:
    """As `decode_picture`, but decoded only when its pixels are first asked for; its size is known at once."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG"])
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_picture(data: Part) -> Image.Image:
    """The picture of a sample, RGB. It was checked when it was taken in; this only undoes our own encoding."""
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        return image.convert("RGB")
