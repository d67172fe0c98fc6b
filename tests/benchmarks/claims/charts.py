"""Scatter charts with joined points, drawn with Pillow: two measures against each other, one line per arm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f2933", "#d2553a", "#2a8a83", "#5b6bb5", "#e0a126", "#b5527f", "#6f8f3a", "#8a5a3c", "#4aa3df", "#999999")
_SCALE = 2  # drawn larger and reduced, for smooth lines
_LEFT, _TOP, _RIGHT, _BOTTOM = 62, 16, 16, 46
_GRID, _INK, _PALE = "#e3e0d8", "#1f2933", "#6b7280"


@dataclass(frozen=True)
class Series:
    """Points (x, y) in their order, joined by a line; `labels` stand beside them."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    labels: Sequence[str] = ()


def scatter(
    series: Sequence[Series], x_label: str, y_label: str, size: tuple[int, int] = (620, 400), legend: int = 210
) -> Image.Image:
    """A chart with its legend on the right."""
    points = [point for one in series for point in one.points if all(map(math.isfinite, point))]
    width, height = (side * _SCALE for side in (size[0] + legend, size[1]))
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    if not points:
        return image.resize((size[0] + legend, size[1]))
    (x_low, x_high), (y_low, y_high) = (_range([point[axis] for point in points]) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (size[0] - _LEFT - _RIGHT)
        down = size[1] - _BOTTOM - (y - y_low) / (y_high - y_low) * (size[1] - _TOP - _BOTTOM)
        return across * _SCALE, down * _SCALE

    for tick in ticks(x_low, x_high):
        pen.line([place(tick, y_low), place(tick, y_high)], fill=_GRID, width=_SCALE)
        across, down = place(tick, y_low)
        pen.text((across, down + 5 * _SCALE), f"{tick:g}", fill=_PALE, font=_font(11), anchor="ma")
    for tick in ticks(y_low, y_high):
        pen.line([place(x_low, tick), place(x_high, tick)], fill=_GRID, width=_SCALE)
        across, down = place(x_low, tick)
        pen.text((across - 6 * _SCALE, down), f"{tick:g}", fill=_PALE, font=_font(11), anchor="rm")
    middle = (place(x_low, y_low)[0] + place(x_high, y_low)[0]) / 2
    pen.text((middle, height - 6 * _SCALE), x_label, fill=_INK, font=_font(12), anchor="md")
    _upright(image, y_label, height // 2)
    for number, one in enumerate(series):
        _draw_series(pen, one, [place(*point) for point in one.points])
        across, down = (size[0] + 12) * _SCALE, (_TOP + 10 + 20 * number) * _SCALE
        _dot(pen, across, down, one.colour)
        pen.text((across + 10 * _SCALE, down), one.name, fill=_INK, font=_font(11), anchor="lm")
    return image.resize((size[0] + legend, size[1]), Image.Resampling.LANCZOS)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers inside low … high."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _draw_series(pen: ImageDraw.ImageDraw, one: Series, places: Sequence[tuple[float, float]]) -> None:
    if len(places) > 1:
        pen.line(list(places), fill=one.colour, width=2 * _SCALE)
    for number, (across, down) in enumerate(places):
        _dot(pen, across, down, one.colour)
        if number < len(one.labels):
            pen.text((across + 6 * _SCALE, down), one.labels[number], fill=one.colour, font=_font(10), anchor="ld")


def _dot(pen: ImageDraw.ImageDraw, across: float, down: float, colour: str) -> None:
    reach = 4 * _SCALE
    pen.ellipse((across - reach, down - reach, across + reach, down + reach), fill=colour)


def _upright(image: Image.Image, text: str, middle: int) -> None:
    label = Image.new("RGB", (image.height, 20 * _SCALE), "white")
    ImageDraw.Draw(label).text((image.height // 2, 10 * _SCALE), text, fill=_INK, font=_font(12), anchor="mm")
    image.paste(label.rotate(90, expand=True), (0, middle - image.height // 2))


def _font(points: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(points * _SCALE)
