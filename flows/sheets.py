"""Pictures side by side with words to them: what the applications' commands write."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from infra.errors import UserError

SIDE = 192  # three times the demo's pictures
_GAP, _LINE, _INK = 8, 20, (60, 56, 66)
_FONT = ImageFont.load_default(13)

Cell = tuple[str, Image.Image | None]
"""A picture and the words above it; None leaves the place empty."""


def captioned(cells: Sequence[Cell], columns: int, side: int = SIDE) -> Image.Image:
    """The pictures in rows of `columns`, each in a square of `side` pixels under its words, in two lines at most."""
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    lines = [[_wrapped(words, side) for words, _ in row] for row in rows]
    heads = [_LINE * max(1, *map(len, row)) for row in lines]
    canvas = Image.new("RGB", (columns * (side + _GAP) + _GAP, sum(heads) + len(rows) * (side + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(canvas)
    top = _GAP
    for row, wrapped, head in zip(rows, lines, heads, strict=True):
        for x, ((_, picture), words) in enumerate(zip(row, wrapped, strict=True)):
            left = _GAP + x * (side + _GAP)
            for number, line in enumerate(reversed(words), start=1):  # the last line right above its picture
                place = (left + side / 2, top + head - number * _LINE + 2)
                pen.text(place, line, fill=_INK, font=_FONT, anchor="ma")
            if picture is not None:
                canvas.paste(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (left, top + head))
        top += head + side + _GAP
    return canvas


def grid(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], labels: Sequence[str], title: str, side: int
) -> Image.Image:
    """A table of small maps, their pixels left sharp, with words above the columns and beside the rows."""
    margin = max(round(_FONT.getlength(label)) for label in labels) + 2 * _GAP
    pitch = side + 2
    canvas = Image.new("RGB", (margin + len(columns) * pitch + _GAP, 2 * _LINE + len(rows) * pitch + _GAP), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, 2), title, fill=_INK, font=_FONT)
    for x, words in enumerate(columns):
        pen.text((margin + x * pitch + side / 2, _LINE + 2), words, fill=_INK, font=_FONT, anchor="ma")
    for y, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = 2 * _LINE + y * pitch
        pen.text((margin - _GAP, top + side / 2), label, fill=_INK, font=_FONT, anchor="rm")
        for x, map_ in enumerate(row):
            canvas.paste(map_.resize((side, side), Image.Resampling.NEAREST), (margin + x * pitch, top))
    return canvas


def beside(*sheets: Image.Image) -> Image.Image:
    """Sheets from left to right."""
    canvas = Image.new("RGB", (sum(one.width for one in sheets), max(one.height for one in sheets)), "white")
    left = 0
    for one in sheets:
        canvas.paste(one, (left, 0))
        left += one.width
    return canvas


def below(*sheets: Image.Image) -> Image.Image:
    """Sheets one under the other."""
    canvas = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), "white")
    top = 0
    for one in sheets:
        canvas.paste(one, (0, top))
        top += one.height
    return canvas


def animate(frames: Sequence[Image.Image], out: Path, side: int = SIDE) -> None:
    """Write frames as a .gif that runs there and back."""
    if len(frames) < 2:
        raise UserError("An animation has at least 2 frames.")
    large = [frame.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for frame in frames]
    there_and_back = [*large, *large[-2:0:-1]]
    there_and_back[0].save(out, save_all=True, append_images=there_and_back[1:], duration=160, loop=0)


def _wrapped(words: str, width: int) -> list[str]:
    """The words in two lines at most, each of which fits; what is left over is cut."""
    first, rest = words, ""
    while _FONT.getlength(first) > width and " " in first:
        first, _, word = first.rpartition(" ")
        rest = f"{word} {rest}".strip()
    return [_cut(line, width) for line in (first, rest) if line]


def _cut(words: str, width: int) -> str:
    if _FONT.getlength(words) <= width:
        return words
    while words and _FONT.getlength(f"{words}…") > width:
        words = words[:-1]
    return f"{words.rstrip()}…"
