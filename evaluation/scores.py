"""Every picture's values: the table from which all numbers, comparisons and lists of an evaluation are computed.

It is kept beside the pictures as Parquet, in exact floating point, so that a later comparison needs no new measuring.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import polars as pl

from evaluation.protocol import Cell

Column = dict[str, list[float]]
"""One measure's values by subject."""

_CELL = {name: pl.Int64 if name in ("prompt", "seed") else pl.String for name in Cell.model_fields}


@dataclass(frozen=True)
class Scores:
    """One row per picture of a release, one column per measure; `None` where a measure does not apply to a picture.

    Pictures of pairs have the columns of `pair_…` and `prior_pair_…`, those of one subject the others; all have
    `flagged`, where a safety checker looked.
    """

    cells: Sequence[Cell]
    values: Mapping[str, Sequence[float | None]]

    def column(self, name: str) -> Column:
        """A measure's values by subject, of pictures of one subject; what does not apply is left out."""
        grouped: Column = {}
        for cell, value in zip(self.cells, self.values.get(name, ()), strict=False):
            if value is not None and not cell.is_pair:
                grouped.setdefault(str(cell.subject), []).append(value)
        return grouped

    def pair_column(self, name: str) -> dict[tuple[str, str], list[float]]:
        """A measure's values by pair of subjects."""
        grouped: dict[tuple[str, str], list[float]] = {}
        for cell, value in zip(self.cells, self.values.get(name, ()), strict=False):
            if value is not None and cell.is_pair:
                grouped.setdefault((str(cell.subject), str(cell.partner)), []).append(value)
        return grouped

    @staticmethod
    def joined(parts: Sequence["Scores"]) -> "Scores":
        """All pictures of several tables, in an order of their own: by subjects, prompt and seed, pairs last."""
        names = sorted({name for part in parts for name in part.values})
        rows = [
            (cell, {name: column[place] for name, column in part.values.items()})
            for part in parts
            for place, cell in enumerate(part.cells)
        ]
        rows.sort(key=lambda row: (row[0].is_pair, row[0].names, row[0].prompt, row[0].seed))
        return Scores([cell for cell, _ in rows], {name: [values.get(name) for _, values in rows] for name in names})

    def where(self, wanted: Callable[[Cell], bool]) -> "Scores":
        """The rows of the cells that are wanted."""
        keep = [wanted(cell) for cell in self.cells]
        values = {name: list(compress(column, keep)) for name, column in self.values.items()}
        return Scores(list(compress(self.cells, keep)), values)

    def to_parquet(self) -> bytes:
        """The table as a Parquet file."""
        about = {name: [getattr(cell, name) for cell in self.cells] for name in _CELL}
        measured = dict.fromkeys(self.values, pl.Float64)
        frame = pl.DataFrame({**about, **self.values}, schema={**_CELL, **measured})
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        return buffer.getvalue()

    @staticmethod
    def from_parquet(data: bytes) -> "Scores":
        """The table that `to_parquet` wrote; a column that it did not know yet is as its cells' default says."""
        frame = pl.read_parquet(io.BytesIO(data))
        about = [name for name in _CELL if name in frame.columns]
        cells = [Cell.model_validate(row) for row in frame.select(about).iter_rows(named=True)]
        return Scores(cells, {name: frame[name].to_list() for name in frame.columns if name not in _CELL})
