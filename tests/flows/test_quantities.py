import pytest

from flows.quantities import duration, in_bytes, in_flops, in_numbers


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "?"),
        (0.238, "238 ms"),
        (0, "0 s"),
        (3.546, "3.55 s"),
        (8.2, "8.2 s"),
        (9.999, "10 s"),
        (12.3, "12 s"),
        (600.0, "10 min"),
        (9000.0, "2.5 h"),
    ],
)
def test_durations_are_for_people(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (999_700, "1 MB"), (65_664, "65.7 kB"), (80e9, "80 GB"), (3e18, "3,000 PB")],
)
def test_bytes_have_three_digits(count: float, said: str) -> None:
    assert in_bytes(count) == said


def test_numbers_and_flops_too() -> None:
    assert (in_numbers(859_520_964), in_numbers(12)) == ("860 M", "12")
    assert (in_flops(2.279e12), in_flops(11.67e18)) == ("2.28 TFLOP", "11.7 EFLOP")
