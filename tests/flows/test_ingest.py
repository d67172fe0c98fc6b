"""Which photos a run reads: each once, and again only what has become readable since."""

from pathlib import Path

import pytest
from PIL import Image

from flows.ingest import new_photos
from flows.run import Run
from flows.workers import IngestWorker
from infra.settings import Settings, load_settings
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
