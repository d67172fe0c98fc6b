"""Batches of which no release is made until somebody looked."""

from pathlib import Path
from typing import Any

import pytest

from flows.batch_check import BatchRefused, batch_since, check_batch
from flows.run import Run, StageResult
from infra.settings import load_settings
from preprocessing.catalog import KEPT, REFUSED, PhotoRow
from tests.tiny_world import tiny_changes, write_models

READ = [StageResult("ingest", 1, 0, facts={"read": 30, "kept": 0})]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("world") / "models").parent


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Run:
    changes = {**tiny_changes(models), "service.refusal_photos": "20", "service.refusal_jump": "0.3"}
    return Run(load_settings("demo", tmp_path, changes))


def _photos(run: Run, first: int, kept: int, refused: int) -> None:
    rows = []
    for number in range(first, first + kept + refused):
        good = number < first + kept
        row = PhotoRow("ingest", "0", f"{number:064x}", "folder", f"{number}.jpg", KEPT if good else REFUSED)
        rows.append(row if good else PhotoRow(**{**_fields(row), "reason": "too_small", "key": ""}))
    run.catalog.commit([], rows)


def _fields(row: PhotoRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in PhotoRow.__dataclass_fields__}


def _release(run: Run) -> Any:
    card = {"catalog_version": run.catalog.version, "stages": run.fingerprints, "run_id": f"r{run.catalog.version}"}
    return run.releases.publish({"note.txt": str(card).encode()}, card)


def test_the_first_photos_have_nothing_to_be_compared_with(run: Run) -> None:
    _photos(run, 0, kept=10, refused=90)
    check_batch(run, READ, None)


def test_a_jump_of_refusals_is_refused_until_good_ones_came(run: Run) -> None:
    _photos(run, 0, kept=95, refused=5)
    release = _release(run)
    _photos(run, 1000, kept=12, refused=18)
    batch = batch_since(run, release)
    assert (batch.seen, batch.refused, batch.seen_before, batch.refused_before) == (30, 18, 100, 5)
    for _ in range(2):  # whoever runs again judges the same photos
        with pytest.raises(BatchRefused, match="Of 30 photos since release 1 60% were refused, and 5% of those before"):
            check_batch(run, [], None)
    _photos(run, 2000, kept=50, refused=0)
    check_batch(run, [], None)


def test_few_photos_and_usual_refusals_pass(run: Run) -> None:
    _photos(run, 0, kept=50, refused=50)
    _release(run)
    _photos(run, 1000, kept=0, refused=19)
    check_batch(run, READ, None)
    _photos(run, 2000, kept=41, refused=40)
    check_batch(run, READ, None)


def test_a_batch_of_which_nothing_can_be_used_is_told_when_it_is_read_and_not_again(run: Run) -> None:
    _photos(run, 0, kept=20, refused=0)
    release = _release(run)
    check_batch(run, READ, release)
    _photos(run, 1000, kept=0, refused=3)
    with pytest.raises(BatchRefused, match="None of 3 new photos can be used"):
        check_batch(run, READ, release)
    check_batch(run, [StageResult("ingest", 0, 1)], release)
