"""Every bad input through the ingest stage as a whole, catalog included: it costs itself and nothing else."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import ingest as ingest_stage
from flows.evaluation_people import read_people
from flows.run import Run, StageResult
from infra.settings import Settings, load_settings
from preprocessing.catalog import KEPT, load_shard
from preprocessing.photos import Reason
from preprocessing.shards import decode_picture, read_tar
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from tests.tiny_world import PIXELS, write_people, write_photos
from tests.without_ray import map_shards

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_stage, "map_shards", map_shards)


def test_a_folder_with_every_bad_input(tmp_path: Path) -> None:
    expected = fill(tmp_path / "photos")
    run, result = ingest(f"folder:{tmp_path / 'photos'}", tmp_path / "workspace")
    rows = run.catalog.photos("ingest")
    assert {row.origin: Reason(row.reason) if row.reason else None for row in rows} == expected
    assert len(rows) == len(expected) and all(row.detail for row in rows if row.status != KEPT)

    refused = [reason for reason in expected.values() if reason]
    counts = run.catalog.counts()
    assert (counts.seen, counts.kept) == (len(expected), len(expected) - len(refused))
    assert counts.refused == {reason: refused.count(reason) for reason in refused}
    assert result.refused == len(refused)
    # What the stages after this one read: each kept photo once, square and in plain colours.
    pictures = samples(run)
    assert pictures.keys() == {row.key for row in rows if row.status == KEPT}
    for data in pictures.values():
        picture = decode_picture(data)
        assert (picture.size, picture.mode) == ((PIXELS, PIXELS), "RGB")

    version = run.catalog.version
    again = ingest(f"folder:{tmp_path / 'photos'}", tmp_path / "workspace")[1]
    assert (again.done, run.catalog.version) == (0, version)


def test_the_good_photos_are_what_they_are_without_the_bad_ones(tmp_path: Path) -> None:
    expected = fill(tmp_path / "mixed")
    (tmp_path / "good").mkdir()
    for name, reason in expected.items():
        if reason is None:
            (tmp_path / "good" / name).write_bytes((tmp_path / "mixed" / name).read_bytes())
    mixed, good = (samples(ingest(f"folder:{tmp_path / one}", tmp_path / f"w-{one}")[0]) for one in ("mixed", "good"))
    assert mixed == good


def test_an_ffhq_json_that_disagrees_with_its_folder(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "ffhq", 6)  # and a duplicate and a text file
    listed = root / "ffhq-dataset-v2.json"
    entries = json.loads(listed.read_text())
    folder = root / "images1024x1024" / "00000"
    (folder / "00001.png").unlink()
    (folder / "00002.png").write_bytes((folder / "00003.png").read_bytes() + b"longer")
    entries["4"]["image"]["file_md5"] = "0" * 32
    del entries["5"]
    entries["0 again"] = entries["0"]
    listed.write_text(json.dumps(entries))

    run, _ = ingest(f"ffhq:{root}", tmp_path / "workspace")
    reasons = {row.origin.removeprefix("images1024x1024/00000/"): row.reason for row in run.catalog.photos("ingest")}
    assert reasons == {
        "00000.png": "",
        "00001.png": Reason.MISSING_FILE,
        "00002.png": Reason.SIZE_MISMATCH,
        "00003.png": "",
        "00004.png": Reason.CHECKSUM_MISMATCH,
        "00005.png": Reason.MISSING_ANNOTATION,
        "00006.png": "",  # the same bytes as 00005.png, which was not kept
        "00007.png": Reason.NOT_AN_IMAGE,
        "ffhq-dataset-v2.json#0 again": Reason.BAD_ANNOTATION,
    }
    counts = run.catalog.counts()
    assert (counts.seen, counts.kept, sum(counts.refused.values())) == (9, 3, 6)
    assert len(samples(run)) == 3


@pytest.mark.parametrize("name", ["identity_CelebA.txt", "list_attr_celeba.txt"])
def test_a_celeba_list_with_a_missing_line(tmp_path: Path, name: str) -> None:
    root = write_people(tmp_path / "celeba")
    path = root / "Anno" / name
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("000003")))
    run, _ = ingest(f"celeba:{root}", tmp_path / "workspace")
    counts = run.catalog.counts()
    assert (counts.seen, counts.kept, counts.refused) == (8, 7, {"missing_annotation": 1})
    (row,) = [row for row in run.catalog.photos("ingest") if row.status != KEPT]
    assert row.origin == "img_celeba/000003.png" and name in row.detail
    # As people to evaluate on: the second one has one photo less.
    assert [len(one["photos"]) for one in sorted(read_people(run), key=lambda one: one["name"])] == [2, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ingest", "--preset", "sd16"], "sd16"),
        (["ingest", "--source", "flickr:photos"], "flickr:"),
        (["ingest", "--source", "ffhq:/no/such/folder"], "/no/such/folder"),
        (["caption", "--set", "caption.beams=3"], "caption.num_beams"),
        (["train", "--steps", "3"], "--steps"),
        (["shard", "--preset", "/no/such/preset.toml"], "/no/such/preset.toml"),
        (["evaluate", "--set", "evaluate.source=celeba:/no/such/folder"], "/no/such/folder"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_two(arguments: list[str], says: str, tmp_path: Path) -> None:
    place = ["--workspace", str(tmp_path / "workspace")]
    command = [sys.executable, "-m", "flows.cli", *arguments, *place]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("moa: ") and answer.stderr.count("\n") == 1 and says in answer.stderr
    assert not list((tmp_path / "workspace").glob("*")), "nothing was started"


def ingest(source: str, workspace: Path) -> tuple[Run, StageResult]:
    """The flow's own body; a few photos per shard, so that bad ones are in every one."""
    changes = {"ingest.pixels": str(PIXELS), "ingest.min_side": "16", "ingest.photos_per_shard": "4"}
    changes |= {"evaluate.source": source, "evaluate.subjects": "4", "shard.reference_pixels": str(PIXELS)}
    settings: Settings = load_settings("demo", workspace, {"ingest.source": source, **changes})
    return Run(settings), ingest_stage.ingest.fn(settings)


def samples(run: Run) -> dict[str, bytes]:
    """Key -> JPEG of all photos in the shards; a photo that is in two of them fails."""
    found = [sample for row in run.catalog.shards("ingest") for sample in read_tar(load_shard(run.store, row))]
    assert len({sample.key for sample in found}) == len(found)
    return {sample.key: sample.parts["jpg"] for sample in found}


def fill(root: Path) -> dict[str, Reason | None]:
    """Good photos and all that can be wrong with a file, and what becomes of each; None = kept."""
    root.mkdir()
    photos = [draw(picture_at(0, number), 96).image for number in range(6)]
    depth = np.asarray(photos[4].convert("L")).astype(np.uint16) * 257
    files = {
        "a first.png": (encoded(photos[0]), None),
        "an empty file.jpg": (b"", Reason.EMPTY_FILE),
        "cmyk.jpg": (encoded(photos[1].convert("CMYK"), "JPEG"), None),
        "cut short.jpg": (encoded(photos[0], "JPEG")[:1500], Reason.TRUNCATED),
        "frames.gif": (encoded(photos[0], "GIF", save_all=True, append_images=photos[1:3]), Reason.ANIMATED),
        "frames.png": (encoded(photos[0], "PNG", save_all=True, append_images=photos[1:3]), Reason.ANIMATED),
        "one pixel.png": (encoded(Image.new("RGB", (1, 1))), Reason.TOO_SMALL),
        "palette.gif": (encoded(photos[2].convert("P"), "GIF"), None),
        "palette.png": (encoded(photos[3].convert("P")), None),
        "sixteen bits.png": (encoded(Image.fromarray(depth)), None),
        "text.jpg": (b"Dear photographer,\nhere is the text.\n", Reason.NOT_AN_IMAGE),
        "vast.png": (png_header(30_000, 30_000), Reason.TOO_LARGE),
        "z last.webp": (encoded(photos[5], "WEBP"), None),
        "z the first again.png": (encoded(photos[0]), Reason.DUPLICATE),
    }
    for name, (data, _) in files.items():
        (root / name).write_bytes(data)
    (root / "directory.jpg").mkdir()
    (root / "link.jpg").symlink_to("nowhere.jpg")
    # Opens well and cannot be read, as on a failing disk; a file's mode would not stop root.
    (root / "unreadable.jpg").symlink_to("/proc/self/mem")
    os.mkfifo(root / "pipe.jpg")
    return {name: reason for name, (_, reason) in files.items()} | {
        "directory.jpg": Reason.NOT_A_FILE,
        "link.jpg": Reason.BROKEN_LINK,
        "unreadable.jpg": Reason.UNREADABLE,
        "pipe.jpg": Reason.NOT_A_FILE,
    }


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
