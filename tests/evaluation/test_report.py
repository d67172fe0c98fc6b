import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation.gate import Check, Verdict
from evaluation.measures import Measure
from evaluation.metrics import Metrics
from evaluation.report import (
    Command,
    Course,
    Curve,
    Fact,
    Intake,
    Photo,
    Refusal,
    RefusedPhoto,
    ReportData,
    RouterPicture,
    Stage,
    StepPictures,
    SubjectGrid,
    SubjectRow,
    Swap,
    Swapped,
    metric_rows,
    render,
)

EVIL = "<script>alert('x')</script>\"onerror="


class Page(HTMLParser):
    """What a browser would see: balanced tags, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def tile(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8))


def measure(value: float) -> Measure:
    return Measure(mean=value, std=0.1, low=value - 0.05, high=value + 0.05, samples=12)


METRICS = Metrics(
    pictures=12,
    subjects=3,
    identity=measure(0.51),
    prior_identity=measure(0.06),
    identity_gain=measure(0.45),
    background_change=measure(0.21),
)
VERDICT = Verdict(
    promote=False,
    reasons=["Identity gain is too small."],
    checks=[
        Check(name="a", value=0.2, limit=0.35, better="higher", passed=False, sentence="Identity gain is 0.2."),
        Check(name="b", value=None, limit=0.7, better="higher", passed=True, sentence="Objects do not apply."),
        Check(name="c", value=-0.1, limit=0.0, better="lower", passed=True, sentence="Below zero."),
    ],
)


def everything(name: str = "00007.png", caption: str = "a photo of a man on the beach") -> ReportData:
    return ReportData(
        title=name,
        subtitle=caption,
        facts=[Fact("photos", "12", name, True), Fact("time", "3 s")],
        intake=Intake(12, 10, [Refusal("duplicate", 2, caption, name)]),
        photos=[Photo(tile(0), caption, np.eye(64, dtype=np.uint8), truth=caption, note=name), Photo(tile(1), caption)],
        refused=[RefusedPhoto(name, "truncated", caption, tile(2)), RefusedPhoto(name, "empty_file", caption)],
        curves=[Curve(name, [1, 2, 3], [3.0, 2.0, 1.0], True, caption, marks=[2]), Curve("empty", [], [])],
        timeline=[StepPictures(100, tile(9)), StepPictures(12_000, tile(10))],
        course=Course(True, name, [caption, name], [{"attempt": "1", "by": name}, {"attempt": "2", "by": caption}]),
        grid=SubjectGrid(
            [caption, "b"], [1, 2], [SubjectRow(name, "man", tile(3), [[tile(4), tile(5)], [tile(6)]], 0.5)]
        ),
        swaps=[Swap(caption, 7, tile(7), [Swapped(name, tile(3), tile(8))])],
        routers=[RouterPicture(caption, tile(4), np.random.default_rng(0).random((8, 8)), name)],
        metrics=METRICS,
        production=METRICS,
        verdict=VERDICT,
        lineage={name: {caption: name}},
        stages=[Stage(name, 0.0, caption), Stage("train", 61.0)],
        commands=[Command(name, caption, name)],
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render(everything())


def test_the_page_is_well_formed_and_self_contained(page: str) -> None:
    seen = Page(page)
    assert seen.open == []
    assert seen.all("script") == seen.all("link") == seen.all("iframe") == []
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in seen.all("img"))
    assert all(str(anchor["href"]).startswith("#") for anchor in seen.all("a"))
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_every_link_of_the_navigation_has_its_section(page: str) -> None:
    seen = Page(page)
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(anchor["href"])[1:] for anchor in seen.all("a")} <= set(ids)


def test_every_picture_says_what_it_shows(page: str) -> None:
    images = Page(page).all("img")
    assert len(images) >= 14
    # Only the head's pictures, which appear again below, are decoration.
    assert sum(image["alt"] == "" for image in images) == 2
    assert all("alt" in image for image in images)


def test_names_and_captions_of_strangers_are_escaped() -> None:
    text = render(everything(name=EVIL, caption=EVIL + "{{ 7 * 7 }}"))
    seen = Page(text)
    assert "<script" not in text
    assert seen.all("script") == []
    assert not any("onerror" in attributes for _, attributes in seen.tags)
    assert EVIL in seen.text, "shown as it is"
    assert "{{ 7 * 7 }}" in seen.text, "and not run as a template"


def test_an_empty_run_still_makes_a_page() -> None:
    seen = Page(render(ReportData(title="Nothing yet")))
    assert seen.open == []
    assert "Nothing yet" in seen.text
    assert seen.all("section") == []


def test_numbers_intervals_and_production_stand_in_the_table() -> None:
    better = METRICS.model_copy(update={"identity": measure(0.49)})
    identity = metric_rows(METRICS, better)[0]
    assert (identity.label, identity.better) == ("Identity", "higher")
    assert (identity.release, identity.interval, identity.prior, identity.production) == (
        "0.510",
        "0.460 – 0.560",
        "0.060",
        "0.490",
    )
    assert [row.label for row in metric_rows(METRICS)] == ["Identity", "Identity gain", "Background change"]
    assert all(row.production == "" for row in metric_rows(METRICS))


def test_the_table_names_the_distance_of_which_variation_is_a_mean() -> None:
    varied = METRICS.model_copy(update={"variation": measure(0.3), "perceptual_distance": "LPIPS 0.1 (AlexNet)"})
    (row,) = [row for row in metric_rows(varied) if row.label == "Variation"]
    assert row.note == "between seeds of one subject and prompt: LPIPS 0.1 (AlexNet)"


def test_the_verdict_is_said_in_words(page: str) -> None:
    text = Page(page).text
    assert "Kept, not promoted" in text
    assert "Identity gain is too small." in text
    assert "Objects do not apply." in text


def test_the_same_data_gives_the_same_page(page: str) -> None:
    assert render(everything()) == page


def test_where_a_training_went_on_is_marked_and_its_course_is_told(page: str) -> None:
    seen = Page(page)
    assert sum(line.get("class") == "mark" for line in seen.all("line")) == 1
    assert "Dashed: where it was stopped, and went on." in seen.text
    assert "step 12,000" in seen.text and "Who ran it" in seen.text
    assert [table["class"] for table in seen.all("table")].count("numbers attempts") == 1
    lost = render(ReportData(title="t", course=Course(False, "What was left out", ["Step 7 was skipped."])))
    assert "Who ran it" not in lost and 'class="card verdict no"' in lost and "Step 7 was skipped." in lost
    assert "Dashed" not in render(ReportData(title="t", curves=[Curve("loss", [1, 2], [2.0, 1.0])]))
