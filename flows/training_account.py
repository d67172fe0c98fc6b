"""What became of every sample: each epoch's counted one by one, and held against what the steps really read.

A step's tally is a sum over its samples of a checksum of where each stands in the order and in the shards. The workers
add theirs up with the losses, and the sum over all steps that count lies in the checkpoint beside the weights: so
whatever happened in between, the weights say themselves which samples they were trained on. (No torch here.)
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from moa_model import SampleOrder

Place = tuple[int, int]
"""A shard, and a sample in it."""


def sound_place(order: "SampleOrder", sound: Sequence[bool], position: int) -> Place:
    """Whose turn it is at a position: where its shard is damaged, the next one's of a sound shard."""
    place = order.at(position)
    while not sound[place[0]]:
        position += 1
        place = order.at(position)
    return place


def tally(position: int, place: Place) -> int:
    """32 bits that stand for one sample at one position; tallies of many are added up."""
    return zlib.crc32(b"%d %d %d" % (position, *place))


def account(
    order: "SampleOrder",
    shards: Sequence[str],
    starts: Sequence[Mapping[str, Any]],
    skipped: Collection[int],
    steps: int,
    batch_size: int,
    told: int,
) -> dict[str, Any]:
    """Go through a whole training's order once more.

    shards: their names, in the order's numbering. starts: of the workers whose steps are in the weights, each with
    "step" and the names of the "damaged" shards. skipped: numbers, from 1, of the steps that were skipped. told: the
    sum of the tallies that lies beside the weights.

    Gives plain numbers: of samples; of whole epochs and samples of the begun one; how often within an epoch a sample
    was taken more than once ("again"), and how often one was left out of a whole epoch ("missing"); whether the tallies
    agree ("proven").
    """
    ends = np.concatenate([[0], np.cumsum(order.sizes)])
    whole, begun = divmod(steps * batch_size, order.count)
    again = missing = found = 0
    sound = [True] * len(shards)
    changes = {int(start["step"]): set(start["damaged"]) for start in starts}
    for epoch in range(whole + bool(begun)):
        counts = np.zeros(order.count, np.int64)
        first = epoch * order.count
        for position in range(first, first + (order.count if epoch < whole else begun)):
            step, row = divmod(position, batch_size)
            if row == 0 and step in changes:
                sound = [name not in changes[step] for name in shards]
            if step + 1 in skipped:
                continue
            place = sound_place(order, sound, position)
            counts[ends[place[0]] + place[1]] += 1
            found += tally(position, place)
        again += int((counts - 1).clip(min=0).sum())
        missing += int((counts == 0).sum()) if epoch < whole else 0
    return {
        "samples": order.count,
        "whole_epochs": whole,
        "begun": begun,
        "again": again,
        "missing": missing,
        "proven": told == found,
    }
