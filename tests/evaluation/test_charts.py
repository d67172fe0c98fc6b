import base64
import io

import numpy as np
import pytest
from PIL import Image

from evaluation.charts import HEAT, data_address, draw_line, duration, enlarge, heat_map, map_address, overlay, short


def opened(address: str) -> Image.Image:
    head, body = address.split(",", 1)
    assert head in {"data:image/webp;base64", "data:image/png;base64"}
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_tiny_pictures_are_enlarged_by_a_whole_number_and_large_ones_reduced() -> None:
    assert opened(data_address(Image.new("RGB", (64, 64)))).size == (192, 192)
    assert opened(data_address(Image.new("L", (64, 32)))).size == (192, 96)
    assert opened(data_address(Image.new("RGB", (2048, 1024)))).size == (512, 256)
    assert enlarge(Image.new("RGB", (1, 1))).size == (192, 192)


def test_overlay_keeps_people_and_fades_the_rest() -> None:
    instances = np.zeros((64, 64), np.uint8)
    instances[16:48, 16:48] = 1
    shown = np.asarray(overlay(Image.new("RGB", (64, 64), (40, 40, 40)), instances))
    assert shown.shape == (192, 192, 3)
    assert (shown[0, 0] == int(40 * 0.35 + 255 * 0.6)).all()
    assert tuple(shown[48, 96]) == (0xD2, 0x55, 0x3A), "the edge is drawn in the person's paper colour"
    assert shown[96, 96].mean() < 100


def test_overlay_of_a_large_wide_picture_has_its_size() -> None:
    assert overlay(Image.new("RGB", (300, 200)), np.ones((200, 300), np.uint8)).size == (300, 200)


def test_heat_is_bright_where_the_weight_is() -> None:
    weight = np.zeros((4, 4), np.float32)
    weight[0, 0] = 1
    hot = np.asarray(heat_map(Image.new("RGB", (64, 64), "grey"), weight))
    assert hot[0, 0].mean() > hot[-1, -1].mean() + 80
    assert heat_map(Image.new("RGB", (64, 64)), np.full((4, 4), 0.5, np.float32)).size == (192, 192)


def test_a_map_keeps_its_own_pixels_and_has_the_colours_of_the_heat_map() -> None:
    weight = np.linspace(0.2, 0.8, 16, dtype=np.float32).reshape(4, 4)
    shown = opened(map_address(weight)).convert("RGB")
    assert shown.size == (4, 4)
    assert (shown.getpixel((0, 0)), shown.getpixel((3, 3))) == (HEAT[0], HEAT[-1]), "stretched to its own range"
    assert opened(map_address(np.full((4, 4), 0.5, np.float32))).convert("RGB").getpixel((0, 0)) == HEAT[0]


def test_a_falling_curve_goes_down_from_left_to_right() -> None:
    line = draw_line(range(100), [1 / (step + 1) for step in range(100)], log=True)
    assert line is not None
    points = [tuple(map(float, point.split())) for point in line.path[1:].split(" L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[-1][1] > points[0][1], "SVG's y axis points down"
    assert [text for _, text in line.x_labels] == ["0", "50", "99"]


def test_curves_that_cannot_be_drawn_are_none() -> None:
    assert draw_line([], []) is None
    assert draw_line([1], [1.0]) is None
    assert draw_line([1, 2], [float("nan"), 1.0]) is None
    assert draw_line([1, 2], [-1.0, -2.0], log=True) is None
    assert draw_line([1, 2], [0.0, 0.0]) is not None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (1e-4, "1.0e-4"), (12345, "12,345"), (-0.5, "-0.5"), (1e6, "1.0e6")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_durations() -> None:
    assert [duration(s) for s in (7.24, 185, 7800)] == ["7.2 s", "3 min 05 s", "2 h 10 min"]


def test_marks_stand_where_their_steps_are_and_not_beside_the_curve() -> None:
    line = draw_line([10, 20, 30], [3.0, 2.0, 1.0], marks=[20, 5, 30, 99])
    assert line is not None
    points = [float(point.split()[0]) for point in line.raw[1:].split(" L")]
    assert line.marks == pytest.approx([points[1], points[2]], abs=0.1)


def test_a_long_curve_has_no_more_points_than_can_be_seen() -> None:
    """A training of 40,000 steps: means of neighbours, and the last value as it is."""
    line = draw_line(range(4001), [float(step) for step in range(4001)])
    assert line is not None
    points = line.raw[1:].split(" L")
    assert len(points) <= 601
    assert [text for _, text in line.x_labels] == ["3", "2,002", "4,000"]
    short_one = draw_line(range(600), [float(step) for step in range(600)])
    assert short_one is not None and len(short_one.raw.split(" L")) == 600
