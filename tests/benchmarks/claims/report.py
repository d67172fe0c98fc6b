"""evaluation/CLAIMS.md and its pictures, from what has been measured so far; what is missing is said to be missing."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from tests.benchmarks.claims import pages, prose
from tests.benchmarks.claims.drawing import Gallery
from tests.benchmarks.claims.plan import FULL, LENGTHS, MOA
from tests.benchmarks.claims.results import Results

_TEMPLATE = """\
# The paper's claims, measured on Paperfolk

Written by `python -m tests.benchmarks.claims` (`make claims`) from the results that were there; nothing
here is typed by hand but the prose. What was tried on the way, with what failed, is in [LOG.md](LOG.md).

{state}

## What holds and what does not

{verdicts}

### The goal

{goals}

## The table

{table}

{table_notes}

### Two people in one picture

{pairs}

## Trade-offs

{curves}

### At equal identity

{equal}

## The setting that keeps the scene best

{search}

## Pictures

{sheets}

## How it was made

{method}
"""


def write_report(gallery: Gallery, seeds: Sequence[int], target: Path) -> list[Path]:
    """Write CLAIMS.md and its pictures into `target` (the evaluation folder); gives what was written."""
    results = Results(gallery, seeds)
    step = longest(results)
    pictures = target / "pictures" / "claims"
    pictures.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Image.Image] = {}
    text = _TEMPLATE.format(
        state=pages.state(results, step),
        verdicts=pages.verdict_table(results, step),
        goals=pages.goal_table(results, step),
        table=pages.main_table(results, step),
        table_notes=prose.TABLE_NOTES,
        pairs=pages.pair_table(results, step),
        curves=pages.curves(results, step, drawn),
        equal=pages.equal_identity(results, step),
        search=pages.search(results, step, drawn),
        sheets=pages.sheets(results, step, drawn),
        method=prose.METHOD,
    )
    written = [_replaced(target / "CLAIMS.md", text.encode())]
    for name, picture in drawn.items():
        path = pictures / name
        part = path.with_name(f".{os.getpid()}-{name}")
        picture.quantize(128, dither=Image.Dither.NONE).save(part, "PNG", optimize=True)
        os.replace(part, path)
        written.append(path)
    return written


def longest(results: Results) -> int:
    """The longest training of MoA that is in the table."""
    measured: Iterable[int] = (step for step in LENGTHS if results.found(MOA, step, FULL))
    return max(measured, default=LENGTHS[-1])


def _replaced(path: Path, data: bytes) -> Path:
    part = path.with_name(f".{os.getpid()}-{path.name}")
    part.write_bytes(data)
    os.replace(part, path)
    return path
