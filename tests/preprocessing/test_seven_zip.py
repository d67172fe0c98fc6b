"""7z parts: unpacked once, resumably, verified, and never outside of the cache."""

import io
import os
import shutil
from pathlib import Path

import py7zr
import pytest

from infra.errors import UserError
from preprocessing import seven_zip
from preprocessing.photos import Reason
from preprocessing.seven_zip import find_parts, unpacked
from preprocessing.sources import Surroundings
from preprocessing.trees import DiskTree

PHOTOS = {f"img_celeba/{number:06d}.jpg": os.urandom(2000) for number in range(1, 6)}


def write_parts(folder: Path, members: dict[str, bytes], parts: int = 3) -> None:
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(data, name)
    data, size = buffer.getvalue(), -(-len(buffer.getvalue()) // parts)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(parts):
        (folder / f"img_celeba.7z.{number + 1:03d}").write_bytes(data[number * size : (number + 1) * size])


def unpack(root: Path, cache: Path, told: list[float] | None = None) -> dict[str, object]:
    around = Surroundings(cache, lambda title, done, total: (told if told is not None else []).append(done / total))
    found = unpacked(find_parts(DiskTree(root), "Img/img_celeba"), around, "img_celeba.7z")
    return {one.origin: one.problem or one.place for one in found}


@pytest.mark.parametrize("folder", ["Img", "Img/img_celeba.7z"])
def test_parts_are_unpacked_once_with_progress(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / folder, PHOTOS)
    told: list[float] = []
    found = unpack(tmp_path, tmp_path / "cache", told)
    assert {name: place.read_bytes() for name, place in found.items() if isinstance(place, Path)} == PHOTOS
    assert told[0] == 0 and told[-1] == 1 and told == sorted(told)

    def again(*_: object) -> None:
        raise AssertionError("unpacked a second time")

    monkeypatch.setattr(seven_zip, "_unpack", again)
    assert unpack(tmp_path, tmp_path / "cache") == found


def test_a_run_that_was_killed_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    write_parts(tmp_path / "Img", PHOTOS)
    found = unpack(tmp_path, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "unpacked.json").unlink()
    first, second, *_ = sorted((folder / "files" / "img_celeba").iterdir())
    second.unlink()
    (second.with_name(f".{second.name}.partial")).write_bytes(b"half")
    before = first.stat().st_mtime_ns
    assert unpack(tmp_path, tmp_path / "cache") == found
    assert second.read_bytes() == PHOTOS["img_celeba/000002.jpg"] and first.stat().st_mtime_ns == before


def test_other_parts_are_unpacked_anew(tmp_path: Path) -> None:
    write_parts(tmp_path / "Img", PHOTOS)
    unpack(tmp_path, tmp_path / "cache")
    shutil.rmtree(tmp_path / "Img")
    write_parts(tmp_path / "Img", {"img_celeba/9.jpg": b"new"}, parts=2)
    assert list(unpack(tmp_path, tmp_path / "cache")) == ["img_celeba/9.jpg"]


@pytest.mark.parametrize("damage", ["missing part", "cut", "changed"])
def test_a_damaged_archive_is_one_sentence_and_no_half_file(damage: str, tmp_path: Path) -> None:
    write_parts(tmp_path / "Img", PHOTOS)
    last = tmp_path / "Img" / "img_celeba.7z.003"
    if damage == "missing part":
        last.unlink()
    elif damage == "cut":
        last.write_bytes(last.read_bytes()[:50])
    else:
        middle = tmp_path / "Img" / "img_celeba.7z.002"
        middle.write_bytes(bytes(len(middle.read_bytes())))
    with pytest.raises(UserError, match="download its parts again") as caught:
        unpack(tmp_path, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    for path in (tmp_path / "cache").rglob("*.jpg"):
        assert path.read_bytes() == PHOTOS[f"img_celeba/{path.name}"] or path.name.startswith(".")
    write_parts(tmp_path / "Img", PHOTOS)
    assert len(unpack(tmp_path, tmp_path / "cache")) == 5


def test_hostile_members_stay_in_the_archive(tmp_path: Path) -> None:
    data = io.BytesIO()
    with py7zr.SevenZipFile(data, "w") as archive:
        for name in ("aa/aa/aaaaaaa.jpg", "bb/good.jpg", "bb/odd\nname.jpg"):
            archive.writestr(b"photo", name)
        archive.header.files_info.files[0]["filename"] = "../../outside.jpg"
    (tmp_path / "Img").mkdir()
    (tmp_path / "Img" / "img_celeba.7z").write_bytes(data.getvalue())
    found = unpack(tmp_path, tmp_path / "cache")
    problems = {name: one[0] if isinstance(one, tuple) else None for name, one in found.items()}
    assert problems == {
        "bb/good.jpg": None,
        "../../outside.jpg#0": Reason.UNSAFE_PATH,
        "bb/odd\nname.jpg#1": Reason.BAD_ARCHIVE,
    }
    assert [path.name for path in tmp_path.rglob("*.jpg")] == ["good.jpg"]
    assert unpack(tmp_path, tmp_path / "cache") == found


def test_a_bomb_and_a_missing_cache_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "Img", {"img_celeba/1.jpg": bytes(1 << 20)}, parts=1)
    monkeypatch.setattr(seven_zip, "_RATIO_FROM_BYTES", 1 << 16)
    with pytest.raises(UserError, match="no photos"):
        unpack(tmp_path, tmp_path / "cache")
    parts = find_parts(DiskTree(tmp_path), "Img/img_celeba")
    with pytest.raises(UserError, match="workspace"):
        list(unpacked(parts, Surroundings(), "img_celeba.7z"))
