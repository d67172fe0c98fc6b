"""Sheets of pictures: everything in its place, nothing cut that would fit."""

from pathlib import Path

import pytest
from PIL import Image

from flows.sheets import animate, below, beside, captioned, grid
from infra.errors import UserError

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def _centres(sheet: Image.Image, color: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Where squares of a color begin, from left to right and top to bottom."""
    pixels = sheet.load()
    assert pixels is not None
    inside = {(x, y) for y in range(sheet.height) for x in range(sheet.width) if pixels[x, y] == color}
    return sorted(place for place in inside if {(place[0] - 1, place[1]), (place[0], place[1] - 1)}.isdisjoint(inside))


def test_pictures_stand_in_rows_under_their_words() -> None:
    sheet = captioned([("a", RED), ("", None), ("b", BLUE)], columns=2, side=40)
    (red,), (blue,) = _centres(sheet, (255, 0, 0)), _centres(sheet, (0, 0, 255))
    assert blue[0] == red[0] and blue[1] > red[1] + 40  # the empty place counts
    words = sheet.crop((red[0], red[1] - 20, red[0] + 40, red[1]))
    assert min(words.convert("L").getextrema()) < 128  # something is written there


def test_long_words_take_a_second_line() -> None:
    short = captioned([("a photo", RED)], columns=1, side=96)
    long = captioned([("a photo of somebody in the forest", RED)], columns=1, side=96)
    longer = captioned([("a photo of somebody in the forest " * 5, RED)], columns=1, side=96)
    assert short.height < long.height == longer.height and short.width == long.width == longer.width


def test_a_grid_has_a_place_for_every_map() -> None:
    table = grid([[RED, BLUE, RED], [BLUE, RED, BLUE]], ["1", "2", "3"], ["first", "second"], "maps", side=20)
    assert len(_centres(table, (255, 0, 0))) == 3 and len(_centres(table, (0, 0, 255))) == 3


def test_sheets_side_by_side_and_below() -> None:
    assert beside(RED, Image.new("RGB", (4, 12))).size == (12, 12)
    stacked = below(RED, BLUE)
    assert stacked.size == (8, 16) and stacked.getpixel((0, 8)) == (0, 0, 255)


def test_an_animation_goes_there_and_back(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (8, 8), (80 * k, 0, 0)) for k in range(4)]
    animate(shades, tmp_path / "x.gif", side=16)
    with Image.open(tmp_path / "x.gif") as film:
        seen = []
        for frame in range(film.n_frames):
            film.seek(frame)
            seen.append(film.convert("RGB").getpixel((8, 8))[0])
    assert seen == [0, 80, 160, 240, 160, 80]
    with pytest.raises(UserError, match="at least 2 frames"):
        animate(shades[:1], tmp_path / "y.gif")
