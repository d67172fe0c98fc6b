"""What a bad disk does to a shard."""

import random
from pathlib import Path

from preprocessing.shards import sample_spans


def flip_a_bit(path: Path, chance: random.Random) -> None:
    """One bit of one sample, written over the file as it lies there: whoever has it mapped sees it."""
    _, spans = chance.choice(list(sample_spans(path.read_bytes())))
    start, size = chance.choice(list(spans.values()))
    with path.open("r+b", buffering=0) as file:
        place = start + chance.randrange(size)
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 1 << chance.randrange(8)]))
