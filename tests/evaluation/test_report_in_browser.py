"""The report as people use it: in a real browser, with mouse, keyboard and finger, wide, narrow, dark and on paper."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.report import render
from evaluation.report_data import ReportData
from tests.evaluation.browser import CHROMIUM, Tab, browser
from tests.evaluation.report_example import EVIL, everything

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt-get install chromium)")

SHOWN = "[...document.querySelectorAll('.shot')].filter(shot => shot.checkVisibility())"
OPACITY = "Number(getComputedStyle(document.querySelector('#shot-0 .heat')).opacity)"
TAB, ENTER, ESCAPE, RIGHT, LEFT = ("Tab", 9), ("Enter", 13, "\r"), ("Escape", 27), ("ArrowRight", 39), ("ArrowLeft", 37)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(everything()), "utf-8")
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(chromium: Tab, page: Path) -> Tab:
    chromium.open(page)
    return chromium


def test_everything_is_there_and_nothing_is_asked_for(tab: Tab, page: Path) -> None:
    sections = tab.ask("[...document.querySelectorAll('section')].map(section => section.id)")
    told = ["summary", "ends", "gallery", "subjects", "swaps", "routers", "metrics", "intake", "photos", "refused"]
    assert sections == [*told, "losses", "timeline", "course", "lineage", "use"]
    tab.until("[...document.images].every(image => image.complete)")
    assert tab.ask("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert tab.ask("document.querySelectorAll('table').length") == 6
    assert "data:image/webp" in tab.ask("getComputedStyle(document.querySelector('.prior-0')).backgroundImage")
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(246, 236, 220)", "its style is allowed"
    assert not tab.ask("document.documentElement.classList.contains('plain')"), "and its script"
    assert {url for url in tab.requests if not url.startswith("data:image/")} == {page.as_uri()}
    assert tab.problems == []


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(chromium: Tab, page: Path, width: int) -> None:
    chromium.open(page, width, phone=width < 500)
    assert chromium.ask("innerWidth") == width
    assert chromium.ask("(page => page.scrollWidth <= page.clientWidth)(document.documentElement)")
    chromium.ask("document.querySelector('.closer').click()")
    assert chromium.ask("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")
    assert chromium.problems == []


def test_tables_sort_by_a_click_or_a_key_and_go_back(tab: Tab) -> None:
    rows = "[...document.querySelector('#metrics table').tBodies[0].rows]"
    labels = f"{rows}.map(row => row.cells[0].firstChild.textContent)"
    head = "#metrics thead th:nth-child(3)"
    state = f"document.querySelector('{head}').getAttribute('aria-sort')"
    drawn = tab.ask(labels)
    tab.click(f"{head} button")
    assert tab.ask(labels) == ["Background change", "Identity gain", "Identity"] and tab.ask(state) == "ascending"
    tab.click(f"{head} button")
    assert tab.ask(labels) == ["Identity", "Identity gain", "Background change"] and tab.ask(state) == "descending"
    tab.click("#metrics thead th:nth-child(6) button")
    assert tab.ask(state) is None, "one head at a time"
    kinds = "[...document.querySelector('.groups').tBodies[0].rows].map(row => row.cells[0].firstChild.textContent)"
    assert tab.ask(kinds)[0] == "accessory"
    tab.click(".groups thead th:last-child button")
    assert tab.ask(kinds)[1] == "accessory", "what has no number comes last"
    tab.click(f"{head} button")
    tab.click(f"{head} button")
    tab.press(*ENTER)  # the button has the focus: the third time restores the order of the page
    assert tab.ask(labels) == drawn and tab.ask(state) is None


def test_the_gallery_is_filtered_ordered_and_shown_in_portions(tab: Tab) -> None:
    count = "document.querySelector('.count').textContent"
    assert tab.ask(count) == "24 of 28 pictures shown" and tab.ask(f"{SHOWN}.length") == 24
    prompts = tab.ask("[...document.querySelector('.filters').elements.prompt.options].map(option => option.text)")
    assert prompts[:2] == ["all", "a photo of … on the beach"] and prompts[-1] == "both"
    tab.click(".more button")
    assert tab.ask(count) == "28 pictures shown" and not tab.ask("document.querySelector('.more').checkVisibility()")
    assert tab.ask("document.activeElement.closest('.shot').id") == "shot-24", "the focus goes to what is new"
    tab.choose("person", "1")
    assert tab.ask(count) == "8 pictures shown", "six alone and two in pairs"
    tab.choose("people", "2")
    assert tab.ask(f"{SHOWN}.map(shot => shot.dataset.person)") == ["0 1", "0 1"]
    tab.click(".filters button[type=reset]")
    tab.until(f"{count} == '24 of 28 pictures shown'")
    tab.choose("group", "1")
    assert tab.ask(f"new Set({SHOWN}.map(shot => shot.dataset.prompt)).size") == 1
    tab.choose("group", "")
    tab.choose("prompt", "1")
    assert tab.ask(count) == "8 pictures shown"
    tab.choose("nobody", "true")
    assert tab.ask(count) == "No picture is like that."
    tab.choose("prompt", "")
    assert tab.ask(count) == "4 pictures shown"
    tab.choose("nobody", "false")
    tab.choose("order", "identity down")
    values = tab.ask(f"{SHOWN}.map(shot => Number(shot.dataset.identity))")
    assert values == sorted(values, reverse=True) and len(values) == 24
    assert tab.ask("document.querySelector('.prior').checkVisibility()")
    tab.choose("beside", "false")
    assert not tab.ask("document.querySelector('.prior').checkVisibility()")
    assert tab.problems == []


def test_the_router_map_lies_over_the_picture_under_mouse_and_focus(tab: Tab) -> None:
    assert tab.ask(OPACITY) == 0
    tab.hover("#shot-0 .frame")
    tab.until(f"{OPACITY} == 0.72")
    tab.do("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    tab.until(f"{OPACITY} == 0")
    tab.ask("document.querySelector('.filters button').focus()")
    tab.press(*TAB)
    assert tab.ask("document.activeElement.closest('.shot').id") == "shot-0"
    tab.until(f"{OPACITY} == 0.72")
    tab.press(*TAB)
    tab.until(f"{OPACITY} == 0")
    tab.choose("maps", "true")
    tab.until(f"{OPACITY} == 0.72")


def test_a_tap_keeps_the_router_map_and_another_one_takes_it_away(chromium: Tab, page: Path) -> None:
    chromium.open(page, 390, phone=True)
    chromium.tap("#shot-0 .frame")
    chromium.until(f"{OPACITY} == 0.72")
    assert chromium.ask("document.querySelector('#shot-0 .frame').getAttribute('aria-pressed')") == "true"
    chromium.tap("#shot-0 .frame")
    chromium.until(f"{OPACITY} == 0")


def test_a_closer_look_goes_from_picture_to_picture_and_back(tab: Tab) -> None:
    place, who = "document.querySelector('.place').textContent", "document.querySelector('dialog h3').textContent"
    tab.choose("person", "2")
    tab.click("#shot-2 .closer")
    assert tab.ask("document.querySelector('dialog').open") and tab.ask(place) == "1 of 8"
    assert tab.ask("[...document.querySelectorAll('dialog figcaption')].map(c => c.firstChild.textContent.trim())") == [
        "Release",
        "Production",
        "Prior",
    ]
    assert "cman, seed 1" in tab.ask(who)
    tab.press(*RIGHT)
    assert tab.ask(place) == "2 of 8" and "cman, seed 2" in tab.ask(who)
    tab.press(*LEFT)
    tab.press(*LEFT)
    assert tab.ask(place) == "1 of 8" and tab.ask("document.querySelector('.back').disabled")
    tab.press(*ESCAPE)
    assert not tab.ask("document.querySelector('dialog').open")
    assert tab.ask("document.activeElement.closest('.shot').id") == "shot-2", "the focus is where it was"
    tab.click(".end.best li:nth-child(2) a")
    assert tab.ask(place) == "2 of 10" and tab.ask("document.querySelectorAll('dialog .heat').length") == 1
    assert tab.problems == []


def test_without_its_script_everything_is_there_to_read(chromium: Tab, page: Path, tmp_path: Path) -> None:
    silent = tmp_path / "report.html"
    text = page.read_text("utf-8")
    silent.write_text(text[: text.rindex("<script>")], "utf-8")
    chromium.open(silent)
    assert chromium.ask(f"{SHOWN}.length") == 28 and chromium.ask("document.querySelectorAll('.prior').length") == 28
    hidden = ["filters", "more", "closer"]
    assert not any(chromium.ask(f"document.querySelector('.{name}').checkVisibility()") for name in hidden)
    chromium.hover("#shot-0 .frame")
    chromium.until(f"{OPACITY} == 0.72")
    chromium.click(".end.worst li:nth-child(2) a")
    assert chromium.ask("document.querySelector(':target').id") == "shot-1"
    assert chromium.problems == []


def test_names_of_strangers_do_nothing(chromium: Tab, tmp_path: Path) -> None:
    """A subject, a prompt, a file, a reason: whatever they are called."""
    path = tmp_path / "report.html"
    hostile = f"{EVIL}<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'></style></script>"
    path.write_text(render(everything(name=hostile, caption=hostile + " a man")), "utf-8")
    chromium.open(path)
    chromium.choose("person", "0")
    chromium.ask("document.querySelector('#shot-0 .closer').click()")
    assert chromium.ask("window.hurt") is None
    assert chromium.ask("document.querySelector('dialog h3').textContent.includes('<script>window.hurt')")
    assert chromium.ask("document.querySelectorAll('script').length") == 1
    assert chromium.problems == [], "it did not even come to the policy"


def test_what_is_not_the_pages_own_does_not_run(chromium: Tab, page: Path, tmp_path: Path) -> None:
    """The second wall: had something escaped the escaping, the policy holds."""
    path = tmp_path / "report.html"
    bad = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'><img src=http://stranger.example/x.png>"
    path.write_text(page.read_text("utf-8").replace("</main>", bad + "</main>"), "utf-8")
    chromium.open(path)
    assert chromium.ask("window.hurt") is None
    assert len(chromium.problems) == 4 and all("Content Security Policy" in problem for problem in chromium.problems)
    assert chromium.requests and not any("stranger" in url for url in chromium.requests)


def test_on_paper_there_is_nothing_to_click_and_nothing_is_cut(tab: Tab) -> None:
    paper = {"height": 1000, "deviceScaleFactor": 1, "mobile": False}
    tab.do("Emulation.setDeviceMetricsOverride", width=703 + 15, **paper)  # A4 without its margins, and a scroll bar
    tab.do("Emulation.setEmulatedMedia", media="print")
    for selector in ("nav", ".filters", ".more", ".closer", "dialog"):
        assert not tab.ask(f"document.querySelector('{selector}').checkVisibility()"), selector
    scrolling = "[...document.querySelectorAll('.scroll')].filter(s => getComputedStyle(s).overflowX != 'visible')"
    assert tab.ask(f"{scrolling}.length") == 0
    cut = "[...document.querySelectorAll('section{} .scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
    assert tab.ask(cut.format(":not(#metrics)")) == 0, "no table is cut at the edge of the paper"
    tab.do("Emulation.setDeviceMetricsOverride", width=1032 + 15, **paper)  # the metrics are printed across
    assert tab.ask(cut.format("")) == 0
    assert tab.ask("(page => page.scrollWidth <= page.clientWidth)(document.documentElement)")
    assert tab.ask("getComputedStyle(document.querySelector('#metrics')).page") == "wide"
    assert tab.ask("getComputedStyle(document.querySelector('.shot')).breakInside") == "avoid"


def test_it_is_dark_where_the_reader_wants_it(chromium: Tab, page: Path) -> None:
    chromium.open(page, prefers_color_scheme="dark")
    colour = "getComputedStyle(document.body).{}.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    assert chromium.ask(colour.format("backgroundColor")) < 120 and chromium.ask(colour.format("color")) > 600


def test_a_page_without_a_gallery_has_no_errors_either(chromium: Tab, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(ReportData(title="Nothing yet")), "utf-8")
    chromium.open(path)
    assert chromium.ask("document.querySelector('h1').textContent") == "Nothing yet" and chromium.problems == []
