"""Sheets of pictures: a person a row, an arm a column, everything at one prompt and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE = 6, 13
_INK = "#1f2933"


@dataclass(frozen=True)
class Row:
    """Pictures of one person (None: not there), and what stands below the row."""

    pictures: Sequence[Image.Image | None]
    caption: str = ""


def sheet(titles: Sequence[str], rows: Sequence[Row], side: int = 112) -> Image.Image:
    """All rows below the columns' titles, each picture enlarged to `side` pixels."""
    head = 3 * _LINE + _GAP
    foot = _LINE + 4
    width = len(titles) * (side + _GAP) + _GAP
    image = Image.new("RGB", (width, head + len(rows) * (side + foot + _GAP)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for column, title in enumerate(titles):
        for line, text in enumerate(wrapped(title, 18)[:3]):
            pen.text((_GAP + column * (side + _GAP), 2 + line * _LINE), text, fill=_INK, font=font)
    for number, row in enumerate(rows):
        top = head + number * (side + foot + _GAP)
        for column, picture in enumerate(row.pictures):
            if picture is not None:
                enlarged = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
                image.paste(enlarged, (_GAP + column * (side + _GAP), top))
        pen.text((_GAP, top + side + 1), row.caption, fill=_INK, font=font)
    return image


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters where its words allow it."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
