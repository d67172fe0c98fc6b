"""Which photos repeat another one: re-encoded, resized, mirrored or slightly cropped.

Two photos are near-duplicates where both signatures agree: their hashes differ in few bits *and* their embeddings
point the same way. Aligned portraits of two people can have like hashes, two photos of one person like embeddings;
both at once is the same picture.

Photos are taken in a fixed order, old before new and new by (source, origin, key). A photo that repeats one that was
kept is refused and names it; so what was decided stays decided, whatever is added later, and in whatever order the
signatures were made.

Axes: Q photos asked about, N photos compared with, K hashes of one photo, D embedding width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float16, UInt8, UInt64

from preprocessing.signatures import Signatures, SignedPhoto, mirrored

STAGE = "duplicates"
# Pairs at a time: few enough to stay in the processor's cache, which makes the search four times as fast.
_ASKED, _COMPARED = 16, 4096


@dataclass(frozen=True)
class Limits:
    """hash_distance: most of 64 bits that may differ. cosine: the smallest between two embeddings."""

    hash_distance: int
    cosine: float


@dataclass(frozen=True, order=True)
class Match:
    """`asked` repeats `found` (row numbers); sorts by likeness."""

    hash_distance: int
    distance: float  # 1 - cosine
    found: int
    asked: int


def matches(asked: Signatures, among: Signatures, limits: Limits) -> Iterator[Match]:
    """Every pair of near-duplicates between two sets of photos; memory does not grow with either."""
    for start in range(0, len(asked), _ASKED):
        rows = slice(start, start + _ASKED)
        for match in _block(asked.hashes[rows], asked.embeds[rows], among.hashes, among.embeds, limits):
            yield replace(match, asked=match.asked + start)


def find_repeats(
    new: Signatures, kept: Signatures, limits: Limits, progress: Callable[[int], None] = lambda done: None
) -> dict[int, tuple[SignedPhoto, Match]]:
    """Row of `new` → the kept photo that it repeats, and how closely.

    kept: the photos that were decided on before and are no repeats. `new` is taken in the order of (source, origin,
    key), whatever its rows' order. `progress` is told how many photos are done.
    """
    order = sorted(range(len(new)), key=lambda row: _place(new.photos[row]))
    leaders = _Leaders(kept, len(new))
    repeats: dict[int, tuple[SignedPhoto, Match]] = {}
    for start in range(0, len(order), _ASKED):
        rows = order[start : start + _ASKED]
        hashes, embeds = new.hashes[rows], new.embeds[rows]
        before: dict[int, list[Match]] = {}
        for match in _block(hashes, embeds, leaders.hashes, leaders.embeds, limits):
            before.setdefault(match.asked, []).append(match)
        beside: dict[int, list[Match]] = {}
        for match in _block(hashes, embeds, hashes, embeds, limits):
            if match.found < match.asked:
                beside.setdefault(match.asked, []).append(match)
        places: dict[int, int] = {}  # of this block's photos among the leaders
        for place, row in enumerate(rows):
            fits = before.get(place, []) + [
                replace(match, found=places[match.found]) for match in beside.get(place, []) if match.found in places
            ]
            if fits:
                best = min(fits)
                repeats[row] = (leaders.photos[best.found], best)
            else:
                places[place] = leaders.add(new.photos[row], hashes[place], embeds[place])
        progress(start + len(rows))
    return repeats


def say(repeated: SignedPhoto, match: Match) -> str:
    """The sentence of the catalog: which photo is repeated, and how closely."""
    likeness = f"{match.hash_distance} of 64 bits differ, cosine {1 - match.distance:.3f}"
    return f"repeats {repeated.name} ({repeated.key[:16]}): {likeness}"


def _place(photo: SignedPhoto) -> tuple[str, str, str]:
    return photo.source, photo.origin, photo.key


class _Leaders:
    """The photos that were kept, with room for those that will be."""

    def __init__(self, kept: Signatures, more: int) -> None:
        self.photos, self._count = list(kept.photos), len(kept)
        self._hashes: UInt64[np.ndarray, "n k"] = kept.hashes
        self._embeds: Float16[np.ndarray, "n d"] = kept.embeds
        self._more = more

    @property
    def hashes(self) -> UInt64[np.ndarray, "n k"]:
        return self._hashes[: self._count]

    @property
    def embeds(self) -> Float16[np.ndarray, "n d"]:
        return self._embeds[: self._count]

    def add(self, photo: SignedPhoto, hashes: UInt64[np.ndarray, " k"], embed: Float16[np.ndarray, " d"]) -> int:
        if self._count == len(self._hashes):  # at the first photo, for all of them
            self._hashes = np.concatenate([self._hashes.reshape(-1, len(hashes)), _room(self._more, hashes)])
            self._embeds = np.concatenate([self._embeds.reshape(-1, len(embed)), _room(self._more, embed)])
        self._hashes[self._count], self._embeds[self._count] = hashes, embed
        self.photos.append(photo)
        self._count += 1
        return self._count - 1


def _room(count: int, row: np.ndarray) -> np.ndarray:
    return np.empty((count, len(row)), row.dtype)


def _block(
    asked_QK: UInt64[np.ndarray, "q k"],
    asked_QD: Float16[np.ndarray, "q d"],
    among_NK: UInt64[np.ndarray, "n k"],
    among_ND: Float16[np.ndarray, "n d"],
    limits: Limits,
) -> Iterator[Match]:
    for start in range(0, len(among_NK), _COMPARED):
        rows = slice(start, start + _COMPARED)
        bits_QN = hash_distances(asked_QK, among_NK[rows])
        like_QN: Bool[np.ndarray, "q n"] = bits_QN <= limits.hash_distance
        for asked, found in np.argwhere(like_QN):
            cosine = float(np.dot(asked_QD[asked].astype(np.float32), among_ND[start + found].astype(np.float32)))
            if cosine >= limits.cosine:
                yield Match(int(bits_QN[asked, found]), 1 - cosine, start + int(found), int(asked))


def hash_distances(one_QK: UInt64[np.ndarray, "q k"], other_NK: UInt64[np.ndarray, "n k"]) -> UInt8[np.ndarray, "q n"]:
    """Fewest differing bits between the whole of one and the whole or a middle of the other, mirrored or not."""
    least_QN = np.full((len(one_QK), len(other_NK)), 64, np.uint8)
    differing_QN, bits_QN = np.empty(least_QN.shape, np.uint64), np.empty_like(least_QN)
    other_KN = np.ascontiguousarray(other_NK.T)
    wholes_and_middles = [(0, k) for k in range(one_QK.shape[1])] + [(k, 0) for k in range(1, one_QK.shape[1])]
    for turned_QK in (one_QK, mirrored(one_QK)):
        for k_one, k_other in wholes_and_middles:
            np.bitwise_xor(turned_QK[:, k_one : k_one + 1], other_KN[k_other], out=differing_QN)
            np.bitwise_count(differing_QN, out=bits_QN)
            np.minimum(least_QN, bits_QN, out=least_QN)
    return least_QN
