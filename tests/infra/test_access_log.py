"""Who had photos in their hands: written before, kept as it is, found again by its day."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from infra.access_log import FOLDER, accesses, note_access
from infra.errors import UserError
from infra.storage import ObjectStore, S3Store


def test_what_is_noted_is_found_in_its_order(store: ObjectStore) -> None:
    noted = [note_access(store, "export", f"{number} samples", run="r") for number in range(3)]
    assert list(accesses(store, days=1)) == noted
    assert noted[0].who and noted[0].host and datetime.fromisoformat(noted[0].at).tzinfo is not None


@pytest.mark.parametrize("days", [10.0, 500.0])
def test_only_the_last_days_are_asked_for(days: float, store: ObjectStore) -> None:
    for age in (days + 2, days - 2):
        at = datetime.now(UTC) - timedelta(days=age)
        entry = {"at": at.isoformat(), "who": "w", "host": "h", "what": f"{age:g} days ago"}
        store.put(f"{FOLDER}/{at:%Y-%m-%d}/000000.0-a.json", json.dumps(entry).encode())
    store.put(f"{FOLDER}/{datetime.now(UTC):%Y-%m-%d}/1-newer.json", b'{"another": "form"}')
    assert [one.what for one in accesses(store, days)] == [f"{days - 2:g} days ago"]


def test_what_cannot_be_written_down_is_refused() -> None:
    nowhere = S3Store("b", "p", "http://127.0.0.1:1", attempts=1)
    with pytest.raises(UserError, match="127.0.0.1:1"):
        note_access(nowhere, "export")
