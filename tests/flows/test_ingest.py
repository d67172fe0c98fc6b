"""Which photos a run reads: each once, and again only what has become readable since."""

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.ingest import new_photos
from flows.run import Run
from flows.workers import IngestWorker
from infra.settings import Settings, load_settings
from preprocessing.catalog import load_shard
from preprocessing.shards import read_tar
from preprocessing.sources import paperfolk


def _read(settings: Settings) -> list[str]:
    """Read what is new, as one chunk, and say what it was."""
    run, records = Run(settings), new_photos(settings)
    worker = IngestWorker(run.store, settings.ingest, "f", frozenset(run.catalog.known_digests()))
    done = worker({"index": 0, "records": records})
    run.catalog.commit([done["shard"]] if done["shard"] else [], done["photos"])
    return [record.origin for record in records]


def test_a_photo_that_was_out_of_reach_is_read_once_it_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.effect_noise((48, 48), 90).save(folder / "b.png")
    (folder / "a.png").symlink_to(tmp_path / "unmounted" / "a.png")
    (folder / "c.png").write_bytes(b"no picture")
    settings = load_settings("demo", tmp_path / "workspace", {"ingest.source": f"folder:{folder}"})
    assert _read(settings) == ["a.png", "b.png", "c.png"]
    assert _read(settings) == []
    (tmp_path / "unmounted").mkdir()
    Image.effect_noise((50, 50), 90).save(tmp_path / "unmounted" / "a.png")
    Image.effect_noise((52, 52), 90).save(folder / "0.png")
    assert _read(settings) == ["0.png", "a.png"]  # the new one first: chunks are cut as if nothing had been mended
    assert _read(settings) == []
    counts = Run(settings).catalog.counts()
    assert (counts.seen, counts.kept, counts.refused) == (4, 3, {"not_an_image": 1})


def test_licence_and_consent_travel_and_a_photos_own_go_first(tmp_path: Path) -> None:
    terms = {"ingest.license": "ours", "ingest.consent": "forms in the safe"}
    own = {"license": "CC0", "consent": "by letter"}
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name, about in (("a", own), ("b", {})):
            for suffix, data in (("png", _png(64 if about else 48)), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = {"ingest.source": f"webdataset:{tmp_path / 'photos.tar'}"}
    settings = load_settings("demo", tmp_path / "workspace", {**source, **terms})
    _read(settings)
    run = Run(settings)
    (row,) = run.catalog.shards("ingest")
    samples = [one.json() for one in read_tar(load_shard(run.store, row))]
    told = {(about["license"], about["consent"]) for about in samples}
    assert told == {("CC0", "by letter"), ("ours", "forms in the safe")}
    silent = load_settings("demo", tmp_path / "silent", source)
    assert Run(silent).fingerprints["ingest"] != run.fingerprints["ingest"]
    assert "consent" not in Run(silent).recipes["ingest"].settings  # shards of before keep their names


def _png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 90).save(buffer, "PNG")
    return buffer.getvalue()


def test_drawn_photos_do_not_keep_ffhqs_out(tmp_path: Path) -> None:
    """They have the same names."""
    settings = load_settings("demo", tmp_path / "workspace", {"paperfolk.pixels": "32"})
    for place, seed in ((settings.workspace / "photos" / "ffhq", 0), (tmp_path / "ffhq", 5)):
        paperfolk.write_ffhq(place, 2, seed, 32, flaws=False, processes=1)
    assert len(_read(settings)) == 2
    real = load_settings("demo", settings.workspace, {"ingest.source": f"ffhq:{tmp_path / 'ffhq'}"})
    assert len(_read(real)) == 2 and _read(real) == []
    assert Run(real).catalog.counts().kept == 4


@pytest.mark.parametrize("name", ["my photos", "été"])
def test_folders_with_ordinary_names(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    Image.effect_noise((48, 48), 90).save(folder / "a b.png")
    settings = load_settings("demo", tmp_path / f"{name} out", {"ingest.source": f"folder:{folder}"})
    assert _read(settings) == ["a b.png"] and _read(settings) == []


_opened: list[str] = []
_watched: list[Path] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event == "open" and str(arguments[0]).startswith(str(_watched[0])):
        _opened.append(str(arguments[0]))


@pytest.mark.parametrize("kind", ["folder", "ffhq", "celeba", "zip", "webdataset", "fastcomposer"])
def test_a_second_pass_with_nothing_new_opens_no_photo(kind: str, tmp_path: Path) -> None:
    """Every opening of a file below the source is counted, by whatever way it is opened."""
    root = tmp_path / "source"
    make = {"ffhq": _ffhq, "celeba": _celeba, "zip": _zip, "webdataset": _tar, "fastcomposer": _fastcomposer}
    root.mkdir()
    allowed = make.get(kind, _folder)(root)
    spec = f"folder:{root / 'x.zip'}" if kind == "zip" else f"{kind}:{root}"
    settings = load_settings("demo", tmp_path / "workspace", {"ingest.source": spec})
    if not any(hook is _watch for hook in _hooks):
        sys.addaudithook(_watch)
        _hooks.append(_watch)
    _watched.append(root)
    try:
        assert len(_read(settings)) == 3 and _opened
        _opened.clear()
        assert new_photos(settings) == []
        assert {Path(name).name for name in _opened} == allowed and len(_opened) <= 2 * len(allowed)
    finally:
        _watched.clear()
        _opened.clear()


_hooks: list[object] = []


def _noise(number: int) -> Image.Image:
    return Image.effect_noise((48, 48), 90 + number)


def _folder(root: Path) -> set[str]:
    for number in range(3):
        _noise(number).save(root / f"{number}.png")
    return set()


def _ffhq(root: Path) -> set[str]:
    paperfolk.write_ffhq(root, 3, 0, 32, flaws=False, processes=1)
    return {"ffhq-dataset-v2.json"}


def _celeba(root: Path) -> set[str]:
    paperfolk.write_celeba(root, 3, 1, 0, 32)
    aligned = {path.name for path in (root / "Anno").iterdir()} - {"list_bbox_celeba.txt"}
    return aligned | {"list_eval_partition.txt"}


def _zip(root: Path) -> set[str]:
    _folder(root)
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for path in sorted(root.glob("*.png")):
            archive.write(path, path.name)
    return {"x.zip"}  # its directory, once


def _tar(root: Path) -> set[str]:
    _folder(root)
    with tarfile.open(root / "x.tar", "w") as archive:
        for path in sorted(root.glob("*.png")):
            archive.add(path, path.name)
    return {"x.tar"}  # its headers, once


def _fastcomposer(root: Path) -> set[str]:
    (root / "00000").mkdir()
    names = [f"{number:08d}" for number in range(3)]
    for name in names:
        _noise(int(name)).save(root / "00000" / f"{name}.jpg")
        np.save(root / "00000" / f"{name}.npy", np.ones((48, 48), int))
        segments = [{"id": 1, "end": 5, "bbox": [0, 0, 48, 48], "coco_label": "person"}]
        (root / "00000" / f"{name}.json").write_text(json.dumps({"caption": "a man", "segments": segments}))
    (root / "image_ids.txt").write_text("\n".join(names))
    return {"image_ids.txt"}
