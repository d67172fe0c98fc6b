"""Webdataset shards: tar files whose bytes depend on their content alone, read back without trusting them.

A sample is a run of files `{key}.{extension}`; the key ends at the first dot, as webdataset has it.
"""

import io
import json
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_BLOCK = 512
_NAME = re.compile(r"(?P<key>[0-9A-Za-z][0-9A-Za-z_-]{0,63})\.(?P<extension>[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?)")
# A sample of the largest preset is below 1 MB; nothing that claims more is one of ours.
MAX_PART_BYTES = 64 * 2**20
_MAX_MASK_PIXELS = 100_000_000


class UnsafeTar(ValueError):
    """A tar that this module would not have written: it is refused as a whole."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: its key and its files by extension ("jpg", "json", "instances.png", "moments.npy" ...)."""

    key: str
    parts: dict[str, bytes]

    def json(self) -> dict[str, Any]:
        """The parsed `.json`; ValueError where it is not an object."""
        value = json.loads(self.parts["json"])
        if not isinstance(value, dict):
            raise ValueError(f"{self.key}.json is not a JSON object")
        return value


def write_tar(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """The samples as one uncompressed tar; the same samples in any order give the same bytes."""
    ordered = sorted(samples, key=lambda sample: sample[0])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for position, (key, parts) in enumerate(ordered):
            if position and ordered[position - 1][0] == key:
                raise ValueError(f"two samples have the key {key!r}")
            for extension in sorted(parts):
                name = f"{key}.{extension}"
                _split(name, key)
                member = tarfile.TarInfo(name)  # mtime, uid and gid 0, no owner, mode 0644
                member.size = len(parts[extension])
                tar.addfile(member, io.BytesIO(parts[extension]))
    return buffer.getvalue()


def read_tar(data: bytes) -> Iterator[Sample]:
    """The samples of a tar in its order. Nothing is extracted, no path is opened.

    Only plain files with whitelisted names are accepted: links, devices, folders, long-name and pax extensions, names
    with a slash, sizes beyond the data or `MAX_PART_BYTES`, a file twice, a sample in two pieces raise UnsafeTar.
    """
    key, done = "", set[str]()
    parts: dict[str, bytes] = {}
    for name, content in _members(data):
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnsafeTar(f"name {name!r} is not allowed in a shard")
        if match["key"] != key:
            if parts:
                yield Sample(key, parts)
            done.add(key)
            key, parts = match["key"], {}
            if key in done:
                raise UnsafeTar(f"sample {key!r} comes in two pieces")
        if match["extension"] in parts:
            raise UnsafeTar(f"file {name!r} comes twice")
        parts[match["extension"]] = content
    if parts:
        yield Sample(key, parts)


def without_samples(data: bytes, keys: Collection[str]) -> bytes:
    """The tar without some of its samples; the others keep their bytes."""
    if not keys:
        return data
    return write_tar((sample.key, sample.parts) for sample in read_tar(data) if sample.key not in keys)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    # Headers are walked here and not by TarFile, whose iteration follows whatever offsets and extensions a file claims.
    offset = 0
    while True:
        header = data[offset : offset + _BLOCK]
        if len(header) < _BLOCK:
            raise UnsafeTar("the tar ends before its end mark")
        if not any(header):
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeError, ValueError) as error:
            raise UnsafeTar(f"bad tar header at byte {offset}: {error}") from error
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise UnsafeTar(f"{member.name!r} is not a plain file")
        start = offset + _BLOCK
        if not 0 <= member.size <= MAX_PART_BYTES:
            raise UnsafeTar(f"{member.name!r} claims {member.size} bytes, at most {MAX_PART_BYTES} are allowed")
        if start + member.size > len(data):
            raise UnsafeTar(f"{member.name!r} is cut off")
        yield member.name, data[start : start + member.size]
        offset = start + -(-member.size // _BLOCK) * _BLOCK


def _split(name: str, key: str) -> None:
    match = _NAME.fullmatch(name)
    if match is None or match["key"] != key:
        raise ValueError(f"{name!r} cannot be a file of a shard")


def encode_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys; ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def encode_npy(array: np.ndarray) -> bytes:
    """A numpy array without objects as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes) -> np.ndarray:
    """The array in a .npy file; ValueError for pickled objects and damaged files."""
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def encode_instances(instances: UInt8[np.ndarray, "h w"]) -> bytes:
    """An instance map (0 = nobody, k = subject k) as a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(instances)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_instances(data: bytes) -> UInt8[np.ndarray, "h w"]:
    """The instance map in a grey PNG; ValueError for any other file."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.mode != "L" or image.width * image.height > _MAX_MASK_PIXELS:
            raise ValueError(f"an instance map is an 8-bit grey PNG, not {image.mode} {image.width}x{image.height}")
        return np.array(image)


def decode_picture(data: bytes) -> Image.Image:
    """The picture of a sample, RGB. It was checked when it was taken in; this only undoes our own encoding."""
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        return image.convert("RGB")
