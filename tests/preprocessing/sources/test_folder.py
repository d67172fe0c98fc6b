"""A plain folder, with whatever lies in folders."""

import os
from pathlib import Path

from PIL import Image

from preprocessing.photos import Reason
from preprocessing.sources import open_source
from preprocessing.trees import DiskTree


def origins(root: Path) -> list[str]:
    return [record.origin for record in open_source(f"folder:{root}").records()]


def test_pictures_are_found_by_name_in_a_stable_order(tmp_path: Path) -> None:
    for name in (
        "b/2.PNG",
        "b/10.jpg",
        "a.jpeg",
        "z.webp",
        "c/d/e.tif",
        "notes.txt",
        ".hidden.jpg",
        ".cache/x.jpg",
        "x.heic",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert origins(tmp_path) == ["a.jpeg", "b/10.jpg", "b/2.PNG", "c/d/e.tif", "x.heic", "z.webp"]


def test_a_record_knows_nothing_but_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "LICENSE").write_text("CC0")
    source = open_source(f"folder:{tmp_path}")
    (record,) = source.records()
    assert record.path == tmp_path / "a.png" and record.source == source.name
    assert (record.faces, record.word, record.identity, record.md5, record.problem) == (None,) * 5
    assert source.license_files == (tmp_path / "LICENSE",)


def test_two_folders_have_two_names(tmp_path: Path) -> None:
    for place in ("one/photos", "two/photos"):
        (tmp_path / place).mkdir(parents=True)
    one, again, two = (
        open_source(f"folder:{tmp_path / place}").name for place in ("one/photos", "one/photos/", "two/photos")
    )
    assert one == again != two
    assert one.startswith("folder:photos-")


def test_odd_things_are_listed_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.jpg").write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / "round").symlink_to(".")  # followed, this would never end
    os.mkfifo(tmp_path / "pipe.jpg")
    assert origins(tmp_path) == ["folder.jpg", "folder.jpg/inside.jpg", "link.jpg", "pipe.jpg"]


def test_names_that_are_no_utf8_fit_into_the_catalog(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"photo")
    (record,) = open_source(f"folder:{tmp_path}").records()
    assert record.origin == "caf\\xe9.jpg"
    assert record.path.read_bytes() == b"photo"


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    # Modes do not stop root; a folder that is gone when its turn comes fails in the same way.
    (found,) = DiskTree(tmp_path).walk("gone")
    assert found.origin == "gone" and found.problem is not None and found.problem[0] == Reason.UNREADABLE
