import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from evaluation.report import render
from evaluation.report_data import Course, Curve, ReportData
from tests.evaluation.report_example import EVIL, everything


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
        if tag not in {"meta", "img", "br", "link", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return render(everything())


def test_the_page_is_well_formed_and_self_contained(page: str) -> None:
    seen = Page(page)
    assert seen.open == []
    assert seen.all("link") == seen.all("iframe") == []
    assert all(re.match("data:image/(webp|png);base64,", str(image["src"])) for image in seen.all("img"))
    assert all(str(anchor["href"]).startswith("#") for anchor in seen.all("a"))
    assert not re.search(r"https?://|@import|url\((?!#|\"data:image/webp;base64,)", page)


def test_its_policy_allows_its_own_style_and_script_and_nothing_else(page: str) -> None:
    (policy,) = [meta["content"] for meta in Page(page).all("meta") if "http-equiv" in meta]
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'{digest(page, 'style')}'",
        "script-src": f"'{digest(page, 'script')}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    attributes = {name for _, found in Page(page).tags for name in found}
    assert not any(name == "style" or name.startswith("on") for name in attributes), "a browser would refuse them"


def digest(page: str, tag: str) -> str:
    """Of the one element of that tag, as a policy names it."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def test_a_gallery_says_of_every_picture_what_it_is_and_what_was_measured(page: str) -> None:
    shots = [tag for tag in Page(page).all("article") if tag["class"] == "shot"]
    assert len(shots) == 28 and sum("data-nobody" in shot for shot in shots) == 4
    assert (shots[5]["data-person"], shots[5]["data-prompt"], shots[5]["data-people"]) == ("1", "0", "1")
    assert (shots[-1]["data-person"], shots[-1]["data-people"]) == ("2 3", "2")
    assert float(str(shots[-1]["data-identity"])) == pytest.approx(27 / 30), "of a pair, the pair's"
    text = Page(page).text
    assert "All 28 pictures that were judged. In 4 of 28 nobody was found" in text
    assert "Identity" in text and "By kind of prompt" in text and "Beside production, picture by picture" in text
    assert "Beside a photo of a man on the beach, picture by picture" in text


def test_pictures_that_many_shots_share_are_there_once(page: str) -> None:
    """The prior's picture of a prompt and seed belongs to everybody."""
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert style.count("url(") == 8 + 4, "three prompts and a pair's, two seeds; four people"
    priors = [str(tag["class"]).split()[-1] for tag in Page(page).all("div") if "prior-" in str(tag.get("class"))]
    assert len(priors) == 28 and set(priors) == {f"prior-{place}" for place in range(8)}
    assert all(f".{name} {{" in style for name in priors)


def test_every_link_of_the_navigation_has_its_section(page: str) -> None:
    seen = Page(page)
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(anchor["href"])[1:] for anchor in seen.all("a")} <= set(ids)


def test_every_picture_says_what_it_shows(page: str) -> None:
    seen = Page(page)
    images = seen.all("img")
    assert len(images) >= 14
    assert all("alt" in image for image in images)
    # Only the head's pictures, which appear again below, and maps over pictures, whose button says it, are decoration.
    assert sum(image["alt"] == "" and image.get("class") != "heat" for image in images) == 2
    frames = [button for button in seen.all("button") if button.get("class") == "frame"]
    assert len(frames) == 27 and all(button["aria-label"] for button in frames)


def test_names_and_captions_of_strangers_are_escaped() -> None:
    text = render(everything(name=EVIL, caption=EVIL + "{{ 7 * 7 }}"))
    seen = Page(text)
    assert text.count("<script") == len(seen.all("script")) == 1, "the page's own"
    assert not any("onerror" in attributes for _, attributes in seen.tags)
    assert EVIL in seen.text, "shown as it is"
    assert "{{ 7 * 7 }}" in seen.text, "and not run as a template"


def test_an_empty_run_still_makes_a_page() -> None:
    seen = Page(render(ReportData(title="Nothing yet")))
    assert seen.open == []
    assert "Nothing yet" in seen.text
    assert seen.all("section") == []


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
    assert [table["class"] for table in seen.all("table")].count("numbers attempts sortable") == 1
    lost = render(ReportData(title="t", course=Course(False, "What was left out", ["Step 7 was skipped."])))
    assert "Who ran it" not in lost and 'class="card verdict no"' in lost and "Step 7 was skipped." in lost
    assert "Dashed" not in render(ReportData(title="t", curves=[Curve("loss", [1, 2], [2.0, 1.0])]))
