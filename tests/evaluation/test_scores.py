"""Every picture's values as a table, and as a file."""

import io
import math

import polars as pl
import pytest

from evaluation.protocol import Cell
from evaluation.scores import Scores
from tests.evaluation.paper_world import World, scored


@pytest.fixture(scope="module")
def scores() -> Scores:
    return scored(World(router=True))


def test_the_file_has_every_picture_and_exactly_its_values(scores: Scores) -> None:
    again = Scores.from_parquet(scores.to_parquet())
    assert list(again.cells) == list(scores.cells) and again.values == scores.values
    assert any(value is None for value in scores.values["object_accuracy"])
    assert scores.to_parquet() == again.to_parquet()


def test_a_value_that_is_no_decimal_fraction_survives() -> None:
    cell = Cell(subject="1", word="man", prompt=0, seed=1, text="a man", group="x")
    third = Scores([cell], {"identity": [1 / 3], "variation": [math.nextafter(0.1, 1)], "router_iou": [None]})
    assert Scores.from_parquet(third.to_parquet()).values == third.values


def test_a_table_of_fewer_columns_than_a_cell_has_now_is_read() -> None:
    frame = pl.DataFrame({"subject": ["1"], "word": ["man"], "prompt": [0], "seed": [1], "text": ["a man"]})
    buffer = io.BytesIO()
    frame.with_columns(identity=0.5).write_parquet(buffer)
    read = Scores.from_parquet(buffer.getvalue())
    assert read.cells[0].names == ("1",) and read.column("identity") == {"1": [0.5]}


def test_columns_by_subject_and_by_pair(scores: Scores) -> None:
    assert {name: len(values) for name, values in scores.column("identity").items()} == {
        f"00000{number}": 4 for number in range(1, 5)
    }
    assert {len(values) for values in scores.pair_column("pair_identity").values()} == {2}
    assert scores.column("pair_identity") == {} == scores.pair_column("identity") == scores.column("unheard of")


def test_some_of_the_rows(scores: Scores) -> None:
    held = scores.where(lambda cell: cell.group == "held")
    assert {cell.prompt for cell in held.cells} == {0}
    assert held.column("identity")["000001"] == scores.column("identity")["000001"][:2]
