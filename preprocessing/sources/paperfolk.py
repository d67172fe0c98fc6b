"""Paperfolk on disk, in the layouts of FFHQ and CelebA: a world whose every picture has a known truth.

The readers for the real collections read it; nothing downstream knows that it is drawn. Beside the official files lie
`truth.jsonl` and `truth/` (instance maps), from which captions and masks are scored.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from preprocessing.sources.paperfolk_drawing import Drawing, draw
from preprocessing.sources.paperfolk_world import Identity, Picture, picture_at, random_identity, random_picture

FOLDER = "images1024x1024"
_PEOPLE_OF_CELEBA = 1_000_000  # far from the indices of pictures: nobody is in both collections
_LICENSE = ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/")
# One photo in 100 goes wrong on its way to us, in turn in each of these ways.
_FLAWS = ("truncated", "empty", "text", "duplicate", "tiny", "wrong digest", "missing", "header only")
_EVERY = 100
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
).split()


@dataclass(frozen=True)
class Truth:
    """What is true of one picture."""

    caption: str
    instances_path: Path
    words: tuple[str, ...]
    looks: tuple[str, ...]
    identities: tuple[str, ...]

    def instances(self) -> np.ndarray:
        """uint8 [h, w]: 0 = nobody, k = the k-th person from the left."""
        return np.asarray(Image.open(self.instances_path))


def identity_name(identity: Identity) -> str:
    """A short stable name for somebody: equal looks, equal name."""
    return hashlib.sha256(repr(astuple(identity)).encode()).hexdigest()[:10]


def write_ffhq(root: Path, count: int, seed: int, pixels: int = 64, flaws: bool = True, processes: int = 2) -> None:
    """Write the first `count` photos of world `seed` under `root` as FFHQ.

    Called again with a larger `count` it adds photos; interrupted and called again it goes on. With `flaws` one photo
    in a hundred is damaged, as in any collection that has travelled.
    """
    jobs = [(root, index, seed, pixels) for index in range(count)]
    (root / "truth").mkdir(parents=True, exist_ok=True)
    for start in range(0, count, 1000):
        (root / FOLDER / f"{start:05d}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        rows = list(pool.map(_write_photo, jobs, chunksize=32))
    entries: dict[str, Any] = {str(index): entry for index, (entry, _) in enumerate(rows)}
    if flaws:
        for flaw, index in zip(_cycle(_FLAWS), range(_EVERY - 1, count, _EVERY), strict=False):
            _damage(root, entries[str(index)], entries[str(index - 1)], flaw)
    _write(root / "truth.jsonl", "".join(json.dumps(truth) + "\n" for _, truth in rows).encode())
    _write(root / "LICENSE.txt", f"Drawn by a program; {_LICENSE[0]}, {_LICENSE[1]}\n".encode())
    _write(root / "ffhq-dataset-v2.json", json.dumps(entries, indent=1).encode())


def read_truth(root: Path) -> dict[str, Truth]:
    """The truth of every picture that `write_ffhq` wrote, by its path under `root`."""
    truth = {}
    for line in (root / "truth.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        truth[row["origin"]] = Truth(
            row["caption"], root / row["instances"], tuple(row["words"]), tuple(row["looks"]), tuple(row["identities"])
        )
    return truth


def write_celeba(root: Path, people: int, photos_each: int, seed: int, pixels: int = 64) -> None:
    """Write `photos_each` close-ups of each of `people` people under `root` as CelebA.

    No picture of theirs is in the FFHQ of this seed.
    """
    folder = root / "img_align_celeba"
    for place in (folder, root / "Anno", root / "Eval"):
        place.mkdir(parents=True, exist_ok=True)
    identities, attributes, landmarks, boxes, partition, truth = [], [], [], [], [], []
    for index, (number, identity, picture) in enumerate(_portraits(people, photos_each, seed), start=1):
        name, drawing = f"{index:06d}.jpg", draw(picture, pixels)
        buffer = io.BytesIO()
        drawing.image.save(buffer, "JPEG", quality=95, subsampling=0)
        _write(folder / name, buffer.getvalue())
        points = drawing.landmarks[0]
        five = [np.mean(points[36:42], 0), np.mean(points[42:48], 0), points[30], points[48], points[54]]
        left, top, right, bottom = _bounds(points)
        identities.append(f"{name} {number}")
        attributes.append(f"{name} " + " ".join(f"{value:2d}" for value in _attributes(identity)))
        landmarks.append(f"{name} " + " ".join(f"{round(v):4d}" for point in five for v in point))
        boxes.append(f"{name} {left:4d} {top:4d} {right - left:4d} {bottom - top:4d}")
        partition.append(f"{name} 2")
        row = {"name": name, "identity": number, "word": identity.word, "looks": identity.appearance}
        truth.append(json.dumps(row))
    counted = f"{len(identities)}\n"
    points_header = " ".join(
        f"{p}_{axis}" for p in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"
    )
    for path, header, rows in (
        ("Anno/identity_CelebA.txt", "", identities),
        ("Anno/list_attr_celeba.txt", counted + " ".join(CELEBA_ATTRIBUTES) + "\n", attributes),
        ("Anno/list_landmarks_align_celeba.txt", counted + points_header + "\n", landmarks),
        ("Anno/list_bbox_celeba.txt", counted + "image_id x_1 y_1 width height\n", boxes),
        ("Eval/list_eval_partition.txt", "", partition),
        ("truth.jsonl", "", truth),
    ):
        _write(root / path, (header + "\n".join(rows) + "\n").encode())


def _portraits(people: int, photos_each: int, seed: int) -> Iterator[tuple[int, Identity, Picture]]:
    for number in range(1, people + 1):
        rng = np.random.default_rng([seed, _PEOPLE_OF_CELEBA + number])
        identity = random_identity(rng)
        for _ in range(photos_each):
            yield number, identity, random_picture(rng, (identity,), close=1.0)


def _write_photo(job: tuple[Path, int, int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw one photo unless it is there, and say what its entries in FFHQ's json and in the truth are."""
    root, index, seed, pixels = job
    picture = picture_at(seed, index)
    drawing = draw(picture, pixels)
    origin, instances = f"{FOLDER}/{index // 1000 * 1000:05d}/{index:05d}.png", f"truth/{index:05d}.png"
    data = _png(drawing.image)
    for name, content in ((origin, data), (instances, _png(Image.fromarray(drawing.instances)))):
        if not (root / name).exists():
            _write(root / name, content)
    return _entry(origin, data, drawing), {
        "origin": origin,
        "caption": picture.caption,
        "instances": instances,
        "words": [person.identity.word for person in picture.people],
        "looks": [person.identity.appearance for person in picture.people],
        "identities": [identity_name(person.identity) for person in picture.people],
    }


def _entry(origin: str, data: bytes, drawing: Drawing) -> dict[str, Any]:
    """One entry of ffhq-dataset-v2.json. FFHQ annotates one face a photo: the first."""
    landmarks = [[round(x, 2), round(y, 2)] for x, y in drawing.landmarks[0]]
    size = list(drawing.image.size)
    image = {
        "file_url": "",
        "file_path": origin,
        **_file(data),
        "pixel_size": size,
        "pixel_md5": hashlib.md5(drawing.image.tobytes()).hexdigest(),
        "face_landmarks": landmarks,
    }
    left, top, right, bottom = _bounds(drawing.landmarks[0])
    return {
        "category": "training",
        "metadata": {
            "photo_url": "",
            "photo_title": "",
            "author": "Paperfolk",
            "country": "",
            "license": _LICENSE[0],
            "license_url": _LICENSE[1],
            "date_uploaded": "2026-11-22",
            "date_crawled": "2026-11-22",
        },
        "image": image,
        "in_the_wild": {
            **{
                key: image[key] for key in ("file_url", "file_path", "file_size", "file_md5", "pixel_size", "pixel_md5")
            },
            "face_rect": [left, top, right, bottom],
            "face_landmarks": landmarks,
            "face_quad": [[left, top], [left, bottom], [right, bottom], [right, top]],
        },
    }


def _file(data: bytes) -> dict[str, Any]:
    return {"file_size": len(data), "file_md5": hashlib.md5(data).hexdigest()}


def _bounds(points: list[tuple[float, float]]) -> tuple[int, int, int, int]:
    columns, rows = zip(*points, strict=True)
    return round(min(columns)), round(min(rows)), round(max(columns)), round(max(rows))


def _damage(root: Path, entry: dict[str, Any], neighbour: dict[str, Any], flaw: str) -> None:
    """Damage one photo in place. What the json says stays believable, so that each flaw is found for its own reason."""
    path = root / entry["image"]["file_path"]
    # The neighbour is whole: from its bytes the damage is the same however often this runs.
    whole = (root / neighbour["image"]["file_path"]).read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"<html><body>404 Not Found</body></html>\n",
        "duplicate": whole,
        "tiny": _png(Image.new("RGB", (1, 1))),
        "wrong digest": None,
        "missing": None,
        "header only": whole[:16] + (30_000).to_bytes(4, "big") * 2 + whole[24:],
    }[flaw]
    if flaw == "wrong digest":
        entry["image"]["file_md5"] = neighbour["image"]["file_md5"]
    elif content is None:
        path.unlink(missing_ok=True)
    else:
        _write(path, content)
        entry["image"] |= _file(content)
        del entry["image"]["pixel_size"]  # or the disagreement about the size would be found first


def _attributes(identity: Identity) -> list[int]:
    """CelebA's 40 attributes, as far as a person of paper has them."""
    true = {
        "Male": identity.word == "man",
        "Eyeglasses": identity.glasses != "no",
        "Wearing_Hat": identity.hat != "no",
        "Bald": identity.hair_style == "bald",
        "Black_Hair": identity.hair_color == "black",
        "Blond_Hair": identity.hair_color == "blond",
        "Brown_Hair": identity.hair_color == "brown",
        "Gray_Hair": identity.hair_color == "grey",
        "Wavy_Hair": identity.hair_style == "curly",
        "Straight_Hair": identity.hair_style in ("long", "bob"),
        "No_Beard": identity.beard == "no beard",
        "Goatee": identity.beard == "goatee",
        "Mustache": identity.beard == "moustache",
        "Oval_Face": identity.face == "oval",
        "Pale_Skin": identity.skin == "porcelain",
        "Rosy_Cheeks": identity.cheeks == "rosy",
        "Bushy_Eyebrows": identity.brows == "thick",
        "Wearing_Lipstick": bool(identity.lips),
        "Heavy_Makeup": bool(identity.lips),
        "Wearing_Earrings": identity.earrings,
        "Smiling": True,
        "Young": identity.hair_color != "grey",
    }
    return [1 if true.get(name, False) else -1 for name in CELEBA_ATTRIBUTES]


def _cycle(names: tuple[str, ...]) -> Iterator[str]:
    while True:
        yield from names


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: an interrupted run leaves no half-written file."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)
