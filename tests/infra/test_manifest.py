"""Manifests: one form for one content, and nothing believed of what comes from elsewhere."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.manifest import (
    MAX_BYTES,
    PART_BYTES,
    BadManifest,
    Content,
    Manifest,
    describe_name,
    make_manifest,
    part_spans,
    read_manifest,
    read_old_files,
    to_json,
)

DIGEST = "ab" * 32
GOOD = make_manifest(
    "moa",
    [
        describe_name("adapter.safetensors", Content(2 * PART_BYTES + 1, DIGEST, ("01" * 32, "02" * 32, "03" * 32))),
        describe_name("README.md", Content(0, "cd" * 32)),
        describe_name("pictures/1.png", Content(PART_BYTES, "ef" * 32)),
    ],
)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}){0,2}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def contents(draw: st.DrawFn) -> Content:
    size = draw(st.integers(0, 4 * PART_BYTES))
    count = len(part_spans(size)) if size > PART_BYTES else 0
    return Content(size, draw(digests), tuple(draw(digests) for _ in range(count)))


@given(st.dictionaries(names, contents(), min_size=1, max_size=6))
def test_what_is_written_is_read_and_the_order_does_not_matter(files: dict[str, Content]) -> None:
    described = [describe_name(name, content) for name, content in files.items()]
    try:
        made = make_manifest("moa", described)
    except ValueError:
        assert "manifest.json" in map(str.lower, files) or len(files) > 1  # twice, or a folder of another
        return
    assert read_manifest(made.data) == made == make_manifest("moa", reversed(described))
    assert made.id == made.digest[:16] and [file.name for file in made.files] == sorted(files)


def test_roles_and_places_follow_from_names() -> None:
    roles = {file.name: (file.role, file.media_type) for file in GOOD.files}
    assert roles["adapter.safetensors"] == ("weights", "application/vnd.safetensors")
    assert roles["README.md"] == ("card", "text/markdown") and roles["pictures/1.png"] == ("other", "image/png")
    assert {GOOD.key(file) for file in GOOD.files} >= {f"blobs/sha256/ab/{DIGEST}"}
    assert GOOD.file("README.md") and GOOD.file("other") is None


def test_every_flipped_bit_is_noticed() -> None:
    for place in range(len(GOOD.data)):
        for bit in range(8):
            changed = bytearray(GOOD.data)
            changed[place] ^= 1 << bit
            with pytest.raises(BadManifest):
                read_manifest(bytes(changed))


def test_every_cut_and_every_addition_is_noticed() -> None:
    for place in range(len(GOOD.data)):
        with pytest.raises(BadManifest):
            read_manifest(GOOD.data[:place])
    for more in (b" ", b"\n", b"{}", b"\0"):
        with pytest.raises(BadManifest):
            read_manifest(GOOD.data + more)


def _changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A manifest that somebody changed and gave its own digest again, as far as that is possible."""
    value = json.loads(GOOD.data)
    change(value)
    import hashlib

    value["digest"] = hashlib.sha256(to_json({k: v for k, v in value.items() if k != "digest"})).hexdigest()
    return to_json(value)


def _rename(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda value: value["files"].update({name: value["files"].pop("README.md")})


def _file(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: value["files"]["README.md"].update(fields)


BAD_NAMES = (
    "../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "..", "a/", "a\\b", "C:x", "a\nb", ".hidden", "a/.git/config",
    "manifest.json", "Manifest.JSON", "ADAPTER.safetensors", "pictures", "pictures/1.png/2.png", "a" * 300, "é", "a b",
    ".partial-1",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_go_astray_is_refused(name: str) -> None:
    with pytest.raises(BadManifest):
        read_manifest(_changed(_rename(name)))
    with pytest.raises(ValueError):
        make_manifest("moa", [*GOOD.files, describe_name(name, Content(0, DIGEST))])


@pytest.mark.parametrize(
    "change",
    [
        _file(size=-1),
        _file(size=2**50),
        _file(size=True),
        _file(size=1.0),
        _file(size="1"),
        _file(size=None),
        _file(sha256="x" * 64),
        _file(sha256=DIGEST.upper()),
        _file(sha256=DIGEST + "0"),
        _file(sha256=7),
        _file(role=""),
        _file(role=["card"]),
        _file(media_type="text/html\nX: y"),
        _file(parts=[]),
        _file(parts=[DIGEST]),
        _file(parts={"0": DIGEST}),
        _file(more=1),
        lambda value: value["files"]["adapter.safetensors"]["parts"].pop(),
        lambda value: value["files"]["adapter.safetensors"].pop("parts"),
        lambda value: value["files"]["README.md"].pop("size"),
        lambda value: value["files"].update({"x": [1, 2]}),
        lambda value: value.update(files=[]),
        lambda value: value.update(files={}),
        lambda value: value.update(files=None),
        lambda value: value.update(files={f"f{i}": value["files"]["README.md"] for i in range(2000)}),
        lambda value: value.update(model="../moa"),
        lambda value: value.update(model=3),
        lambda value: value.pop("model"),
        lambda value: value.update(extra={}),
    ],
)
def test_what_no_publisher_writes_is_refused_though_the_digest_fits(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(BadManifest) as caught:
        read_manifest(_changed(change))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"moa-release/1"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "moa-release/1", "files": ' + b'{"a": ' * 50_000,
        GOOD.data.replace(b'"model"', b'"model": "moa", "model"'),
        GOOD.data.replace(b'"size": 0', b'"size": NaN'),
        GOOD.data.replace(b'"size": 0', b'"size": 1e999'),
        GOOD.data.replace(b'"size": 0', b'"size": ' + b"9" * 10_000),
        GOOD.data.replace(b"\n", b"\r\n"),
        b" " * (MAX_BYTES + 1),
    ],
)
def test_what_is_no_manifest_is_one_sentence(data: bytes) -> None:
    with pytest.raises(BadManifest) as caught:
        read_manifest(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("found", "says"), [("moa-release/2", "update moa"), ("moa-release/99", "update"), (7, "not say")]
)
def test_another_format_is_told_apart_from_damage(found: object, says: str) -> None:
    with pytest.raises(BadManifest, match=says):
        read_manifest(_changed(lambda value: value.update(format=found)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.data())
def test_whatever_stands_in_a_field_is_refused_or_is_the_same_manifest(data: st.DataObject) -> None:
    value = json.loads(GOOD.data)
    place: Any = value
    for _ in range(data.draw(st.integers(0, 3))):
        if not isinstance(place, dict) or not place:
            break
        inner = place[data.draw(st.sampled_from(sorted(place)))]
        if not isinstance(inner, dict):
            break
        place = inner
    key = data.draw(st.sampled_from(sorted(place)) | st.text(max_size=6))
    place[key] = data.draw(json_values)
    _refused_or_canonical(json.dumps(value).encode())
    _refused_or_canonical(json.dumps(value, sort_keys=True, indent=1).encode() + b"\n")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_a_sentence(data: bytes) -> None:
    _refused_or_canonical(data)
    start = random.Random(len(data)).randrange(len(GOOD.data))
    _refused_or_canonical(GOOD.data[:start] + data + GOOD.data[start + len(data) :])


def _refused_or_canonical(data: bytes) -> None:
    try:
        read: Manifest = read_manifest(data)
    except BadManifest as error:
        assert "\n" not in str(error)
    else:
        assert read.data == data and make_manifest(read.model, read.files) == read


@given(json_values)
def test_the_files_of_before_are_not_believed_either(value: object) -> None:
    for files in (value, {"a": value}, {"a": {"sha256": value, "size": 1}}, {"../a": {"sha256": DIGEST, "size": 1}}):
        with pytest.raises(BadManifest):
            read_old_files(files)
    assert read_old_files({"a": {"sha256": DIGEST, "size": 1}})[0].content == Content(1, DIGEST)
