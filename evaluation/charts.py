"""Pictures and curves as text that fits into one HTML file: data addresses, overlays, heat maps, SVG lines."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from evaluation.router_maps import resize_map

# Paper colours, one per person or curve; readable on cream and on night.
PAPER = ("#d2553a", "#2a8a83", "#e0a126", "#5b6bb5", "#b5527f", "#6f8f3a")
# Heat maps run from night over violet and terracotta to cream: dark = prior, bright = personalization expert.
HEAT = ((28, 24, 48), (92, 42, 96), (190, 70, 70), (240, 150, 60), (255, 240, 200))
MIN_SIDE = 192
QUALITY = 80  # WebP's: a fifth of PNG's bytes, and no difference that one would see at this size


def enlarge(image: Image.Image, least: int = MIN_SIDE) -> Image.Image:
    """A tiny picture at a whole multiple of its size (Lanczos), so that a browser has no blurring left to do."""
    picture = image.convert("RGB")
    factor = math.ceil(least / max(1, max(picture.size)))
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)


def data_address(image: Image.Image, least: int = MIN_SIDE, most: int = 512) -> str:
    """`data:image/webp;base64,…` of the picture, enlarged if tiny and reduced if its longer side is above `most`."""
    picture = enlarge(image, least)
    if max(picture.size) > most:
        picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return _data("webp", buffer.getvalue())


def map_address(weight_hw: Float[np.ndarray, "h w"]) -> str:
    """`data:image/png;base64,…` of a map's colours in its own pixels and range: a browser lays it over the picture."""
    level_hw = (_stretched(weight_hw) * 255).round().astype(np.uint8)
    picture = Image.fromarray(level_hw)
    stops = np.linspace(0, 255, len(HEAT))
    colours_256x3 = np.stack([np.interp(np.arange(256), stops, channel) for channel in np.array(HEAT).T], axis=-1)
    picture.putpalette(colours_256x3.round().astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _data("png", buffer.getvalue())


def overlay(image: Image.Image, instances_HW: Int[np.ndarray, "H W"], strength: float = 0.5) -> Image.Image:
    """The picture with person k (0 = nobody) tinted and outlined in paper colour k, and the background faded."""
    factor = math.ceil(MIN_SIDE / max(image.size))
    pixels_HW3 = np.asarray(enlarge(image), np.float32)
    numbers_HW = np.kron(np.asarray(instances_HW), np.ones((factor, factor), np.int64))
    shown_HW3 = pixels_HW3 * 0.35 + 255 * 0.6
    for number in np.unique(numbers_HW):
        if number == 0:
            continue
        mask_HW = numbers_HW == number
        colour = np.array(_rgb(PAPER[(int(number) - 1) % len(PAPER)]), np.float32)
        shown_HW3[mask_HW] = pixels_HW3[mask_HW] * (1 - strength * 0.5) + colour * strength * 0.5
        shown_HW3[mask_HW & ~_eroded(mask_HW)] = colour
    return Image.fromarray(shown_HW3.clip(0, 255).astype(np.uint8))


def heat_map(image: Image.Image, weight_hw: Float[np.ndarray, "h w"], strength: float = 0.72) -> Image.Image:
    """The map's colours laid over a grey copy of the picture; the map is stretched to its own range."""
    picture = enlarge(image)
    weight_HW = resize_map(weight_hw, (picture.height, picture.width))
    level_HW = _stretched(weight_HW)
    stops = np.linspace(0, 1, len(HEAT))
    colours_HW3 = np.stack([np.interp(level_HW, stops, [stop[c] for stop in HEAT]) for c in range(3)], axis=-1)
    grey_HW3 = np.repeat(np.asarray(picture.convert("L"), np.float32)[..., None], 3, axis=-1)
    return Image.fromarray((colours_HW3 * strength + grey_HW3 * (1 - strength)).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Line:
    """A drawn curve in the units of the SVG's view box, and its axis labels."""

    path: str
    area: str
    raw: str
    x_labels: list[tuple[float, str]]
    y_labels: list[tuple[float, str]]
    end: tuple[float, float]
    marks: list[float]
    """Where vertical lines stand."""


_MOST_POINTS = 600  # two to a unit of the drawing; of more, neighbours are taken together
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340.0, 180.0, 46.0, 26.0, 12.0, 12.0


def draw_line(
    steps: Sequence[float], values: Sequence[float], log: bool = False, marks: Sequence[float] = ()
) -> Line | None:
    """The curve and a smoothed one; `None` when fewer than two finite points (log: positive points) are left.

    `marks`: steps to mark with a vertical line; those that lie beside the curve are left out.
    """
    kept = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v) and (v > 0 or not log)]
    if len(kept) < 2:
        return None
    x_N, y_N = _thinned(np.array(kept, float)).T
    level_N = np.log10(y_N) if log else y_N
    low, high = float(level_N.min()), float(level_N.max())
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    start, stop = float(x_N.min()), float(x_N.max())

    def place(steps_N: np.ndarray, levels_N: np.ndarray) -> list[tuple[float, float]]:
        across_N = LEFT + (steps_N - start) / ((stop - start) or 1.0) * (WIDTH - LEFT - RIGHT)
        down_N = TOP + (high - levels_N) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return list(zip(across_N.tolist(), down_N.tolist(), strict=True))

    points = place(x_N, _smoothed(level_N))
    path = _path(points)
    floor = HEIGHT - BOTTOM
    area = f"{path} L{points[-1][0]:.1f} {floor:.1f} L{points[0][0]:.1f} {floor:.1f} Z"
    ticks = np.linspace(low + pad, high - pad, 3)
    x_ticks = np.linspace(start, stop, 3)
    return Line(
        path=path,
        area=area,
        raw=_path(place(x_N, level_N)),
        x_labels=[(place(np.array([t]), np.array([low]))[0][0], f"{t:,.0f}") for t in x_ticks],
        y_labels=[(place(np.array([start]), np.array([t]))[0][1], short(10**t if log else t)) for t in ticks],
        end=points[-1],
        marks=[place(np.array([mark]), np.array([low]))[0][0] for mark in marks if start <= mark <= stop],
    )


def short(value: float) -> str:
    """Three significant digits, without a needless exponent."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def duration(seconds: float) -> str:
    """7.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _stretched(weight_HW: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """The map in its own range, 0 to 1; 0 everywhere where it is flat."""
    span = float(weight_HW.max() - weight_HW.min())
    return (weight_HW - weight_HW.min()) / (span if span > 0 else 1.0)


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


def _thinned(points_N2: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
    """Means of as many neighbours as leave few enough points; the last point stays as it is."""
    together = -(-len(points_N2) // _MOST_POINTS)
    if together == 1:
        return points_N2
    groups = np.array_split(points_N2[:-1], -(-(len(points_N2) - 1) // together))
    return np.array([*(group.mean(axis=0) for group in groups), points_N2[-1]])


def _smoothed(values_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Mean over a centred window of a fifteenth of the curve; the window shrinks at both ends."""
    half = len(values_N) // 30
    total_N = np.concatenate([[0.0], np.cumsum(values_N)])
    places = np.arange(len(values_N))
    reach = np.minimum(np.minimum(places, len(values_N) - 1 - places), half)
    return (total_N[places + reach + 1] - total_N[places - reach]) / (2 * reach + 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _eroded(mask_HW: np.ndarray, pixels: int = 2) -> np.ndarray:
    inner = mask_HW.copy()
    for _ in range(pixels):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
