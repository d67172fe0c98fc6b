"""Names that move, with their history; two movers at once; entries that somebody damaged."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from infra.manifest import BadManifest
from infra.release_names import Names, Release, _move, _old_move
from infra.storage import ObjectStore

ONE, TWO = Release(1, "0" * 16), Release(2, "1" * 16)


def test_each_move_is_an_entry(store: ObjectStore) -> None:
    names = Names(store, "moa")
    assert names.all() == [] and names.history("production") == [] and names.current("production") is None
    assert names.move("production", ONE, "first", 0)
    assert names.move("production", TWO, "better", 1, override="it is the best we have")
    assert names.move("staging", TWO, "trial", 0)
    history = names.history("production")
    assert [(move.number, move.release, move.why, move.override) for move in history] == [
        (1, ONE, "first", ""),
        (2, TWO, "better", "it is the best we have"),
    ]
    assert all(move.who.count("@") == 1 and move.when.endswith("+00:00") for move in history)
    assert names.all() == ["production", "staging"] and names.current("production") == history[-1]
    assert Names(store, "other").all() == []


def test_of_many_movers_one_wins_and_the_others_are_told(store: ObjectStore) -> None:
    names = Names(store, "moa")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: names.move("production", Release(n, f"{n:016x}"), str(n), 0), range(1, 17)))
    assert won.count(True) == 1
    (move,) = names.history("production")
    assert move.why == str(won.index(True) + 1)


def test_a_name_that_is_none_is_refused(store: ObjectStore) -> None:
    for wrong in ("Production", "../x", "", "0" * 16):
        with pytest.raises(UserError, match="cannot name a release"):
            Names(store, "moa").move(wrong, ONE, "", 0)


ENTRY = {"format": "moa-name/1", "release": 1, "id": "0" * 16, "who": "a", "when": "b", "why": "c"}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {**ENTRY, "format": "moa-name/2"},
        {**ENTRY, "release": 0},
        {**ENTRY, "release": "1"},
        {**ENTRY, "release": True},
        {**ENTRY, "id": "../x"},
        {**ENTRY, "id": 7},
        {**ENTRY, "why": None},
        {**ENTRY, "more": 1},
        {**ENTRY, "back_to": 2},
        {**ENTRY, "back_to": -1},
        {name: value for name, value in ENTRY.items() if name != "who"},
    ],
)
def test_an_entry_that_cannot_be_read_is_named(store: ObjectStore, entry: object) -> None:
    names = Names(store, "moa")
    names.move("production", ONE, "first", 0)
    key = "names/moa/production/0002.json"
    for data in (json.dumps(entry).encode(), b"{", b"", b" " * 100_000):
        store.put(key, data)
        for look in (names.history, names.current):
            with pytest.raises(UserError, match="history of a name is damaged") as caught:
                look("production")
            assert store.uri(key) in str(caught.value) and "\n" not in str(caught.value)
    store.delete(key)
    assert names.current("production") is not None


def test_what_else_lies_there_is_no_entry(store: ObjectStore) -> None:
    names = Names(store, "moa")
    names.move("production", ONE, "first", 0)
    for key in (
        "names/moa/production/README",
        "names/moa/production/2.json",
        "names/moa/x.json",
        "names/other/a/0001.json",
    ):
        store.put(key, b"{}")
    assert names.all() == ["production"] and len(names.history("production")) == 1


@given(
    st.dictionaries(st.sampled_from([*ENTRY, "override", "back_to", "number"]), st.integers() | st.text(max_size=20))
)
def test_any_fields_are_a_move_or_refused(fields: dict[str, object]) -> None:
    for read in (_move, _old_move):
        for entry in (fields, ENTRY | fields):
            try:
                move = read(3, dict(entry))
            except BadManifest:
                continue
            assert 0 < move.release.number and len(move.release.id) == 16 and move.back_to < 3
