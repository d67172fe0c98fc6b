"""Near-duplicates: found whatever the order, and what was decided stays decided."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.near_duplicates import Limits, find_repeats, matches, say
from preprocessing.signatures import Signatures, SignedPhoto, joined, mirrored, read_signatures

LIMITS = Limits(hash_distance=6, cosine=0.9)
NOTHING = read_signatures([])


def bits(count: int) -> int:
    return (1 << count) - 1


def made(*photos: tuple[str, int, float]) -> Signatures:
    """Photos as (origin, hash, angle of a flat embedding): easy to say how far apart they are."""
    hashes = np.array([[value] * 3 for _, value, _ in photos], np.uint64).reshape(-1, 3)
    embeds = np.array([[np.cos(angle), np.sin(angle)] for *_, angle in photos], np.float16).reshape(-1, 2)
    return Signatures([SignedPhoto(f"key of {name}", "s", name, "") for name, *_ in photos], hashes, embeds)


def fates(new: Signatures, kept: Signatures = NOTHING) -> dict[str, str]:
    return {new.photos[row].origin: photo.origin for row, (photo, _) in find_repeats(new, kept, LIMITS).items()}


def test_both_signatures_must_agree() -> None:
    photos = made(("a", 0, 0.0), ("b", bits(6), 0.1), ("c", bits(7), 0.1), ("d", 0, 1.0), ("e", bits(40), 0.0))
    assert fates(photos) == {"b": "a"}


def test_the_sentence_names_the_photo_and_how_close_it_is() -> None:
    photos = made(("a", 0, 0.0), ("b", bits(3), 0.1))
    ((leader, match),) = find_repeats(photos, NOTHING, LIMITS).values()
    assert say(leader, match) == "repeats s:a (key of a): 3 of 64 bits differ, cosine 0.995"


def test_the_nearest_is_named_and_a_chain_does_not_drift() -> None:
    """b repeats a, c repeats b but not a: c stays, for nothing that is kept looks like it."""
    assert fates(made(("a", 0, 0.0), ("b", bits(6), 0.0), ("c", bits(12), 0.0))) == {"b": "a"}
    assert fates(made(("a", 0, 0.0), ("b", bits(8), 0.0), ("c", bits(6), 0.0))) == {"c": "b"}


def test_a_mirrored_copy_is_found() -> None:
    photos = made(("a", 0x0123456789ABCDEF, 0.0), ("b", 0, 0.0))
    photos.hashes[1] = mirrored(photos.hashes[0])
    assert fates(photos) == {"b": "a"}


def test_many_copies_of_one_photo_repeat_the_first() -> None:
    """More than a block, and a block that begins in their middle."""
    photos = made(*[(f"{index:03d}", 0, 0.0) for index in range(70)], ("z", bits(30), 0.0))
    assert fates(photos) == {f"{index:03d}": "000" for index in range(1, 70)}


def test_progress_ends_with_every_photo() -> None:
    told: list[int] = []
    find_repeats(made(*[(f"{index:03d}", index << 8, 0.0) for index in range(40)]), NOTHING, LIMITS, told.append)
    assert told == sorted(told) and told[-1] == 40


# Hashes with few bits and angles close together, so that many photos are alike.
WORLDS = st.lists(st.tuples(st.integers(0, 2**14 - 1), st.floats(0, 0.8)), min_size=1, max_size=60)


@given(WORLDS, st.randoms(use_true_random=False), st.data())
def test_order_of_arrival_decides_and_nothing_else(
    world: list[tuple[int, float]], shuffler: random.Random, data: st.DataObject
) -> None:
    photos = made(*[(f"{index:03d}", *about) for index, about in enumerate(world)])
    expected = fates(photos)
    rows = list(range(len(photos)))
    shuffler.shuffle(rows)
    assert fates(photos.take(rows)) == expected  # shards finished in another order
    assert expected.keys().isdisjoint(expected.values())  # nothing is refused for one that is refused itself
    # More photos come: what was decided stays, and the second half is decided as if it had been there from the start.
    half = data.draw(st.integers(0, len(photos)))
    old, more = photos.take(range(half)), photos.take(range(half, len(photos)))
    before = fates(old)
    kept = old.take([row for row in range(half) if old.photos[row].origin not in before])
    assert before | fates(more, kept) == expected
    assert before == {name: other for name, other in expected.items() if name < f"{half:03d}"}


@given(WORLDS, WORLDS)
def test_matches_are_those_of_every_pair(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> None:
    asked = made(*[(f"a{index}", *about) for index, about in enumerate(one)])
    among = made(*[(f"b{index}", *about) for index, about in enumerate(other)])
    found = {(match.asked, match.found) for match in matches(asked, among, LIMITS)}
    cosines = asked.embeds.astype(np.float32) @ among.embeds.astype(np.float32).T
    odd = int(mirrored(np.zeros(1, np.uint64))[0])
    expected = {
        (i, j)
        for i in range(len(asked))
        for j in range(len(among))
        if min(d.bit_count() for x in [int(asked.hashes[i, 0]) ^ int(among.hashes[j, 0])] for d in (x, x ^ odd)) <= 6
        and cosines[i, j] >= LIMITS.cosine
    }
    # A cosine on the limit itself may round either way.
    assert all(abs(cosines[pair] - LIMITS.cosine) < 1e-6 for pair in found ^ expected)


def test_joined_sets_are_searched_as_one() -> None:
    parts = [made(("b", bits(1), 0.0)), made(("a", 0, 0.0))]
    assert fates(joined(parts)) == {"b": "a"}
