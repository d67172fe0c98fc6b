"""The CelebA reader on small roots of the official layout, right and wrong."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import py7zr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UserError
from preprocessing.ingesting import ingest_chunk
from preprocessing.photos import Reason
from preprocessing.sources import Record, Surroundings, open_source

COLUMNS = ["5_o_Clock_Shadow", "Male", "Young"]
POINTS = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"


def write_root(root: Path, count: int = 4, folder: str = "Img/img_align_celeba") -> None:
    names = [f"{index:06d}.jpg" for index in range(1, count + 1)]
    for place in (folder, "Anno", "Eval"):
        (root / place).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (178, 218), (40 * number, 90, 90)).save(root / folder / name)
    write(root, "Anno/identity_CelebA.txt", [f"{name} {2880 + index % 2}" for index, name in enumerate(names)])
    sexes = ["-1" if index % 2 else " 1" for index in range(count)]
    rows = [f"{name} -1  {sex} -1" for name, sex in zip(names, sexes, strict=True)]
    write(root, "Anno/list_attr_celeba.txt", [str(count), " ".join(COLUMNS) + " ", *rows])
    for kind in ("list_landmarks_align_celeba.txt", "list_landmarks_celeba.txt"):
        rows = [f"{name} 69  109  106  113   77  142   73  152  108  154" for name in names]
        write(root, f"Anno/{kind}", [str(count), POINTS, *rows])
    rows = [f"{name}    95  71  226  313" for name in names]
    write(root, "Anno/list_bbox_celeba.txt", [str(count), "image_id x_1 y_1 width height", *rows])
    write(root, "Eval/list_eval_partition.txt", [f"{name} {index % 3}" for index, name in enumerate(names)])


def write(root: Path, name: str, lines: list[str]) -> None:
    (root / name).write_text("\n".join(lines) + "\n")


def change(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


def read(root: Path) -> dict[str, Record]:
    source = open_source(f"celeba:{root}")
    records = list(source.records())
    assert records == list(source.records())
    return {Path(record.origin).name: record for record in records}


def problems(root: Path) -> dict[str, Reason | None]:
    return {name: record.problem[0] if record.problem else None for name, record in read(root).items()}


@pytest.mark.parametrize("folder", ["Img/img_align_celeba", "img_align_celeba", "img_align_celeba/img_align_celeba"])
def test_a_right_root(tmp_path: Path, folder: str) -> None:
    write_root(tmp_path, folder=folder)
    records = read(tmp_path)
    assert list(records) == [f"{index:06d}.jpg" for index in range(1, 5)]
    first, second = records["000001.jpg"], records["000002.jpg"]
    assert first.problem is None and first.path == tmp_path / folder / "000001.jpg"
    assert (first.source, first.origin) == ("celeba", f"{folder}/000001.jpg")
    assert (first.identity, first.word, first.split) == ("2880", "man", "train")
    assert (second.identity, second.word, second.split) == ("2881", "woman", "validation")
    assert first.faces is not None
    face = first.faces[0]
    assert face.landmarks[0] == (69, 109) and face.landmarks[4] == (108, 154)
    assert face.box[0] < 69 and face.box[2] > 108 and face.box[1] < 109 and 154 < face.box[3] < 218
    assert "non-commercial" in first.license and "redistributed" in open_source(f"celeba:{tmp_path}").terms


def test_pictures_in_the_wild_have_their_own_boxes(tmp_path: Path) -> None:
    write_root(tmp_path, folder="img_celeba")
    change(tmp_path, "Anno/list_bbox_celeba.txt", "000002.jpg    95  71  226  313", "000002.jpg 0 0 0 0")
    records = read(tmp_path)
    first, second = records["000001.jpg"].faces, records["000002.jpg"].faces
    assert first is not None and first[0].box == (95, 71, 321, 384)
    assert second is not None and second[0].area > 0, "an empty box is made from the landmarks"


def test_every_list_is_optional(tmp_path: Path) -> None:
    write_root(tmp_path)
    for path in (*(tmp_path / "Anno").iterdir(), *(tmp_path / "Eval").iterdir()):
        path.unlink()
    for record in read(tmp_path).values():
        assert (record.problem, record.identity, record.word, record.split, record.faces) == (None,) * 5


@pytest.mark.parametrize(
    "name",
    [
        "Anno/identity_CelebA.txt",
        "Anno/list_attr_celeba.txt",
        "Anno/list_landmarks_align_celeba.txt",
        "Eval/list_eval_partition.txt",
    ],
)
def test_a_missing_line_costs_its_own_photo(tmp_path: Path, name: str) -> None:
    write_root(tmp_path)
    lines = (tmp_path / name).read_text().splitlines()
    write(tmp_path, name, [line for line in lines if not line.startswith("000003")])
    expected = {"000001.jpg": None, "000002.jpg": None, "000003.jpg": Reason.MISSING_ANNOTATION, "000004.jpg": None}
    assert problems(tmp_path) == expected
    problem = read(tmp_path)["000003.jpg"].problem
    assert problem is not None and Path(name).name in problem[1]


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("Anno/list_attr_celeba.txt", "000002.jpg -1  -1 -1", "000002.jpg -1  -1"),
        ("Anno/list_attr_celeba.txt", "000002.jpg -1  -1 -1", "000002.jpg -1  0 -1"),
        ("Anno/list_landmarks_align_celeba.txt", "000002.jpg 69", "000002.jpg nan"),
        ("Anno/list_landmarks_align_celeba.txt", "000002.jpg 69", "000002.jpg left"),
        ("Anno/identity_CelebA.txt", "000002.jpg 2881", "000002.jpg"),
        ("Anno/identity_CelebA.txt", "000002.jpg 2881", "000002.jpg 2881\n000002.jpg 7"),
        ("Eval/list_eval_partition.txt", "000002.jpg 1", "000002.jpg 9"),
    ],
)
def test_a_bad_line_costs_its_own_photo(tmp_path: Path, name: str, old: str, new: str) -> None:
    write_root(tmp_path)
    change(tmp_path, name, old, new)
    expected = {"000001.jpg": None, "000002.jpg": Reason.BAD_ANNOTATION, "000003.jpg": None, "000004.jpg": None}
    assert problems(tmp_path) == expected


def test_lists_and_folder_disagree(tmp_path: Path) -> None:
    write_root(tmp_path)
    (tmp_path / "Img/img_align_celeba/000001.jpg").unlink()
    Image.new("RGB", (178, 218)).save(tmp_path / "Img/img_align_celeba/999999.jpg")
    change(tmp_path, "Anno/identity_CelebA.txt", "000002.jpg 2881", "000002.jpg 2881\n../../../../etc/passwd 3")
    found = problems(tmp_path)
    assert found == {
        "000001.jpg": Reason.MISSING_FILE,
        "000002.jpg": None,
        "000003.jpg": None,
        "000004.jpg": None,
        "999999.jpg": Reason.MISSING_ANNOTATION,
        "passwd": Reason.UNSAFE_PATH,
    }


def test_a_list_without_its_header_and_a_root_without_pictures_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="img_align_celeba"):
        open_source(f"celeba:{tmp_path}")
    write_root(tmp_path)
    for text in (b"", b"000001.jpg -1 1 -1\n", b"4\n", b"\xff\xfe\x00"):
        (tmp_path / "Anno/list_attr_celeba.txt").write_bytes(text)
        with pytest.raises(UserError, match="list_attr_celeba.txt"):
            list(open_source(f"celeba:{tmp_path}").records())


def zip_pictures(root: Path, folder: str, inside: str = "img_align_celeba/") -> None:
    """The pictures in a zip beside their folder, which goes."""
    with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
        for path in sorted((root / folder).iterdir()):
            archive.write(path, f"{inside}{path.name}")
    shutil.rmtree(root / folder)


@pytest.mark.parametrize("inside", ["img_align_celeba/", "", "img_align_celeba/img_align_celeba/"])
def test_a_zip_is_read_in_place_and_its_photos_are_those_of_the_folder(inside: str, tmp_path: Path) -> None:
    write_root(tmp_path)
    unpacked = list(open_source(f"celeba:{tmp_path}").records())
    limits = SimpleNamespace(pixels=32, min_side=16, max_pixels=100_000)
    expected = ingest_chunk(unpacked, set(), limits)
    zip_pictures(tmp_path, "Img/img_align_celeba", inside)
    zipped = list(open_source(f"celeba:{tmp_path}").records())
    assert [record.origin for record in zipped] == [record.origin for record in unpacked]
    assert ingest_chunk(zipped, set(), limits) == expected and expected.tar is not None


def test_the_lists_may_lie_in_a_zip_too(tmp_path: Path) -> None:
    write_root(tmp_path / "celeba")
    with zipfile.ZipFile(tmp_path / "celeba.zip", "w") as archive:
        for path in (tmp_path / "celeba").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "celeba"))
    whole = [record.identity for record in open_source(f"celeba:{tmp_path}/celeba").records()]
    assert [record.identity for record in open_source(f"celeba:{tmp_path}/celeba.zip").records()] == whole


def test_hostile_members_of_the_zip_are_refused_singly(tmp_path: Path) -> None:
    write_root(tmp_path)
    zip_pictures(tmp_path, "Img/img_align_celeba")
    with zipfile.ZipFile(tmp_path / "Img/img_align_celeba.zip", "a") as archive, pytest.warns(UserWarning):
        for name in ("../../outside.jpg", "/etc/x.jpg", "img_align_celeba/000001.jpg", "000002.jpg", "notes.txt"):
            archive.writestr(name, b"x")
    found = {record.origin: record.problem for record in open_source(f"celeba:{tmp_path}").records()}
    problems = {name: problem[0] for name, problem in found.items() if problem}
    assert sum(problem is None for problem in found.values()) == 4
    assert sorted(problems.values()) == [Reason.BAD_ARCHIVE] * 2 + [Reason.UNSAFE_PATH] * 2


def test_parts_of_a_7z_are_unpacked_into_the_cache(tmp_path: Path) -> None:
    write_root(tmp_path, folder="img_celeba")
    expected = {name: record.faces for name, record in read(tmp_path).items()}
    with py7zr.SevenZipFile(tmp_path / "whole.7z", "w") as archive:
        archive.writeall(tmp_path / "img_celeba", "img_celeba")
    shutil.rmtree(tmp_path / "img_celeba")
    data = (tmp_path / "whole.7z").read_bytes()
    (tmp_path / "Img").mkdir()
    for number in range(3):
        (tmp_path / f"Img/img_celeba.7z.00{number + 1}").write_bytes(
            data[number * 500 : (number + 1) * 500 if number < 2 else None]
        )
    around = Surroundings(tmp_path / "workspace" / "cache")
    records = list(open_source(f"celeba:{tmp_path}", around=around).records())
    assert {record.origin.rpartition("/")[2]: record.faces for record in records} == expected
    assert records[0].origin == "Img/img_celeba/000001.jpg" and not any(record.problem for record in records)
    assert {path.parent.name for path in tmp_path.rglob("*.jpg")} == {"img_celeba"}
    assert len(list((tmp_path / "workspace").rglob("*.jpg"))) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(" ", "\t"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n\n   \n",
        lambda text: text.rstrip("\n"),
    ],
    ids=["CRLF", "tabs", "byte order mark", "empty lines", "no last line feed"],
)
def test_lists_that_another_program_wrote_say_the_same(change: Callable[[str], str], tmp_path: Path) -> None:
    write_root(tmp_path)
    expected = read(tmp_path)
    for path in (*(tmp_path / "Anno").iterdir(), *(tmp_path / "Eval").iterdir()):
        path.write_bytes(change(path.read_text()).encode())
    assert read(tmp_path) == expected


def test_names_in_every_script_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    write_root(tmp_path)
    names = ["写真.jpg", "фото.jpg", "صورة.jpg", "a\u2028b.jpg", "e\u0301.jpg", "😀.jpg"]
    for name in names:
        shutil.copy(tmp_path / "Img/img_align_celeba/000001.jpg", tmp_path / "Img/img_align_celeba" / name)
    for path in (*(tmp_path / "Anno").iterdir(), *(tmp_path / "Eval").iterdir()):
        first = next(line for line in path.read_text().splitlines() if line.startswith("000001.jpg"))
        with open(path, "ab") as file:
            file.write(
                "".join(f"{first.replace('000001.jpg', name)}\n" for name in names if name != "a\u2028b.jpg").encode()
            )
            file.write(b"\xff\xfe.jpg 1\n")
    found = problems(tmp_path)
    assert [found[name] for name in names] == [None, None, None, Reason.MISSING_ANNOTATION, None, None]
    assert found["\\xff\\xfe.jpg"] == Reason.MISSING_FILE and len(found) == 4 + len(names) + 1


@given(st.integers(0, 3000), st.sampled_from(["", "\n", " ", "x", "-", "\0", "../", "é"]))
@settings(max_examples=60)
def test_a_damaged_list_never_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, place: int, inserted: str
) -> None:
    root = tmp_path_factory.mktemp("celeba")
    write_root(root, count=3)
    for name in ("Anno/list_attr_celeba.txt", "Anno/list_landmarks_align_celeba.txt", "Eval/list_eval_partition.txt"):
        text = (root / name).read_text()
        cut = place % len(text)
        (root / name).write_text(text[:cut] + inserted + text[cut + 1 :])
    try:
        records = list(open_source(f"celeba:{root}").records())
    except UserError:
        return
    assert len(records) >= 3
    assert len({record.origin for record in records}) == len(records)


def test_the_rest_of_the_chunk_is_kept(tmp_path: Path) -> None:
    write_root(tmp_path)
    change(tmp_path, "Anno/list_attr_celeba.txt", "000003.jpg -1   1 -1\n", "")
    records = list(open_source(f"celeba:{tmp_path}").records())
    result = ingest_chunk(records, set(), SimpleNamespace(pixels=32, min_side=16, max_pixels=100_000))
    assert [row.reason for row in result.rows] == ["", "", Reason.MISSING_ANNOTATION, ""]
    assert len(result.keys) == 3
