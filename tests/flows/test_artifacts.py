"""Progress and pictures outside of a flow run: the terminal's half."""

from PIL import Image

from flows import artifacts


def test_items_pass_through() -> None:
    assert list(artifacts.tracked(iter([1, 2, 3]), 3, "counting")) == [1, 2, 3]


def test_what_takes_long_is_shown_beside_a_spinner() -> None:
    with artifacts.console.status("looking"), artifacts.telling() as tell:
        for done in range(3):
            tell("unpacking one", done, 2)
            tell("unpacking another", done, 2)
    with artifacts.telling():
        pass  # nothing was told


def test_nothing_is_sent_without_a_run() -> None:
    artifacts.table("t", [{"a": 1}], "d")
    artifacts.markdown("m", "text")
    artifacts.pictures("p", [Image.new("RGB", (4, 4))], "d")


def test_contact_sheet_has_room_for_all() -> None:
    red = Image.new("RGB", (10, 20), "red")
    sheet = artifacts.contact_sheet([red] * 5, columns=4, side=16)
    assert sheet.size == (64, 32)
    assert sheet.getpixel((8, 24)) == (255, 0, 0) and sheet.getpixel((60, 30)) == (255, 255, 255)
