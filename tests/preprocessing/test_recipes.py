"""A fingerprint can be explained, and a speed foretells."""

from pathlib import Path

from infra.settings import load_settings
from infra.storage import DirectoryStore
from preprocessing.recipes import Recipe, Speed, last_speed, load_recipe, stage_recipe


def test_a_recipe_comes_back_with_its_fingerprint(tmp_path: Path) -> None:
    store, settings = DirectoryStore(tmp_path), load_settings("demo").caption
    recipe = stage_recipe("caption", settings, {"models.captioner": "w", "ingest": "i"})
    assert recipe.fingerprint != stage_recipe("caption", settings, {"models.captioner": "i", "ingest": "w"}).fingerprint
    recipe.save(store)
    recipe.save(store)  # once per fingerprint
    assert store.list("fingerprints/") == [f"fingerprints/{recipe.fingerprint}.json"]
    assert load_recipe(store, recipe.fingerprint) == recipe
    assert load_recipe(store, "never") is None
    store.put("fingerprints/broken.json", b"[")
    assert load_recipe(store, "broken") is None


def test_what_changed_is_named() -> None:
    old = Recipe("caption", 1, {"num_beams": 1, "gone": True}, {"models.captioner": "a", "ingest": "i"})
    new = Recipe("caption", 2, {"num_beams": 5, "prompt": "a photo"}, {"models.captioner": "b", "ingest": "i"})
    assert new.changes_since(old) == [
        "caption's format 1 -> 2",
        "caption.num_beams 1 -> 5",
        "caption.gone true -> null",
        'caption.prompt null -> "a photo"',
        "models.captioner",
    ]
    assert new.changes_since(new) == []


def test_the_number_of_workers_is_no_part_of_a_recipe() -> None:
    settings = load_settings("demo").caption
    more = settings.model_copy(update={"workers": settings.workers + 1})
    assert stage_recipe("caption", settings, {}) == stage_recipe("caption", more, {})


def test_the_last_speed_foretells(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    assert last_speed(store, "caption") is None
    Speed(1, 100, 9.0, 9.0, 1).save(store, "caption")
    Speed(11, 1100, 30.0, 10.0, 2).save(store, "caption")
    speed = last_speed(store, "caption")
    assert speed is not None and (speed.estimate(11), speed.estimate(101), speed.estimate(0)) == (30.0, 210.0, 0.0)
    assert len(store.list("timings/caption/")) == 2
