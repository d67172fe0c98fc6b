"""How Paperfolk grows, also when a run is killed and the same command typed again."""

from pathlib import Path

from flows.world import ask_for_more, granted, read_wish
from infra.settings import load_settings


def test_more_is_added_once_until_it_is_granted(tmp_path: Path) -> None:
    settings = load_settings("demo", tmp_path)
    start = settings.paperfolk.photos
    ask_for_more(settings, 200)
    ask_for_more(settings, 200)  # killed and typed again
    assert read_wish(settings)["photos"] == start + 200
    granted(settings)
    assert read_wish(settings)["photos"] == start + 200
    ask_for_more(settings, 200)
    assert read_wish(settings)["photos"] == start + 400


def test_another_number_is_another_wish(tmp_path: Path) -> None:
    settings = load_settings("demo", tmp_path)
    ask_for_more(settings, 10)
    ask_for_more(settings, 20)
    assert read_wish(settings)["photos"] == settings.paperfolk.photos + 30


def test_without_a_wish(tmp_path: Path) -> None:
    settings = load_settings("demo", tmp_path)
    granted(settings)
    assert read_wish(settings) == {"photos": settings.paperfolk.photos, "more": 0, "granted": True}
