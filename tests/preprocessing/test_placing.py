import pytest

from preprocessing.mentions import mentions
from preprocessing.placing import LINES, PLACES, in_line, misplacement


@pytest.mark.parametrize(
    ("caption", "places"),
    [
        ("a man on the left and a woman on the right", ["left", "right"]),
        ("on the left a man and on the right a woman", ["left", "right"]),
        ("on the left is a young man, on the right two women", ["left", "right"]),
        ("a man, on the left, and a woman", ["left", ""]),
        ("a man holding a cat on the right and a woman", ["right", ""]),
        ("a boy second from the left and a man on the far left", ["left+1", "left"]),
        ("the leftmost man", ["left"]),
        ("a woman in the middle", ["middle"]),
        ("a man in the middle of the street", [""]),
        ("a woman between two men", ["middle", ""]),
        ("a man in front of a woman", ["front", "behind"]),
        ("a woman behind a man", ["behind", "front"]),
        ("a man behind a desk and a woman", ["", ""]),
        ("a man standing in the background and a woman in the foreground", ["behind", "front"]),
        ("a man with mountains in the background", [""]),
        ("a woman to the left of a man", ["left", "right"]),
        ("a man and a woman on the beach", ["", ""]),
        ("a man raising his hand, turning left", [""]),
        ("from left to right: a man and a woman", ["left to right", "left to right"]),
        ("from right to left a man and a woman", ["right to left", "right to left"]),
    ],
)
def test_places_belong_to_their_people(caption: str, places: list[str]) -> None:
    assert [one.place for one in mentions(caption)] == places


def test_misplacement_is_nought_at_the_place_and_grows_with_the_distance() -> None:
    assert [misplacement("left", rank, 4) for rank in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [misplacement("right+1", rank, 4) for rank in range(4)] == pytest.approx([2 / 3, 1 / 3, 0, 1 / 3])
    assert [misplacement("middle", rank, 3) for rank in range(3)] == [0.5, 0, 0.5]
    assert [misplacement("front", rank, 2) for rank in range(2)] == [1, 0]
    for place in ["", *PLACES]:
        assert misplacement(place, 0, 1) == 0
        assert all(0 <= misplacement(place, rank, count) <= 1 for count in (2, 3, 9) for rank in range(count))
    assert misplacement("", 3, 4) == 0


def test_a_line_gives_its_people_their_turn() -> None:
    assert [in_line("left to right", index) for index in range(3)] == ["left", "left+1", "left+2"]
    assert in_line("right to left", 0) == "right" and in_line("left to right", 30) == ""
    assert in_line("middle", 5) == "middle" and set(LINES.values()) <= set(PLACES)
