"""People in captions: who is mentioned, what is not a person, plurals written out, spans exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.mentions import MOST_WRITTEN_OUT, Mention, mentions, person_words, write_out


def written_out(caption: str, unnumbered: int = 2) -> str:
    found = mentions(caption)
    return write_out(caption, found, [unnumbered if one.count is None else one.count for one in found])[0]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("two women on the beach", "a woman and a woman on the beach"),
        ("Two young women are standing", "A young woman and a young woman are standing"),
        ("three old men and a girl", "an old man, an old man and an old man and a girl"),
        ("a couple", "a person and a person"),
        ("a young couple sitting on a bench", "a young person and a young person sitting on a bench"),
        ("couple on a bench", "a person and a person on a bench"),
        ("a couple of women", "a woman and a woman"),
        ("a group of five friends posing", "a friend, a friend, a friend, a friend and a friend posing"),
        ("a group of friends", "a friend and a friend"),
        ("a large group of happy children", "a happy child and a happy child"),
        ("men", "a man and a man"),
        ("People walking", "A person and a person walking"),
        ("young men and women", "a young man and a young man and a woman and a woman"),
        ("the two men in suits", "the man and the man in suits"),
        ("these two men", "a man and a man"),
        ("both women", "a woman and a woman"),
        ("a man and his two daughters", "a man and his daughter and his daughter"),
        ("2 men", "a man and a man"),
        ("one of the men", "a man"),
        ("a family of four on a couch", "a person, a person, a person and a person on a couch"),
        ("two businessmen and three ladies", "a businessman and a businessman and a lady, a lady and a lady"),
        ("two dogs chasing women", "two dogs chasing a woman and a woman"),
    ],
)
def test_plurals_are_written_out(caption: str, expected: str) -> None:
    assert written_out(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "a snowman",
        "a man-made lake",
        "a model train",
        "a baby elephant",
        "two baby elephants",
        "a record player",
        "a player piano",
        "a toy soldier",
        "a lego man",
        "a statue of a man",
        "a bronze statue of two women",
        "women's shoes",
        "a men's room",
        "a couple of dogs",
        "a pair of glasses",
        "a family portrait on the wall",
        "an empty street with no people",
        "a room without people",
        "a male lion",
        "a model of a ship",
        "hundreds of people",
        "a king size bed",
        "germany and manhattan",
        "",
        "🙂",
    ],
)
def test_what_is_no_person_is_no_mention(caption: str) -> None:
    # "Elephants" and "lions" are not in the lists in every form; what matters is that nobody is bound to them.
    assert [one.word for one in mentions(caption)] == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a painting of a woman", ["woman"]),
        ("a black and white photo of a man", ["man"]),
        ("a woman looking at a painting of a man", ["woman"]),
        ("a man holding a cat, and the man is smiling", ["man"]),
        ("a man beside another man", ["man", "man"]),
        ("two people, a man and a woman, holding hands", ["man", "woman"]),
        ("A man's hat, a boy's bike and women's shoes", ["man", "boy"]),
        ("a female tennis player", ["player"]),
        ("a baby boy", ["boy"]),
        ("a bride and groom", ["bride", "groom"]),
        ("a Policewoman", ["policewoman"]),
    ],
)
def test_singular_people(caption: str, words: list[str]) -> None:
    assert [one.word for one in mentions(caption)] == words


def test_how_many_they_are_where_the_caption_says() -> None:
    counts = [(one.word, one.count) for one in mentions("a man, two women, several children and people")]
    assert counts == [("man", 1), ("woman", 2), ("child", None), ("person", None)]


def test_too_many_stay_as_they_are_and_nobody_is_bound_to_them() -> None:
    caption = "a man in front of twelve women"
    found = mentions(caption)
    text, words = write_out(caption, found, [1, 12])
    assert text == caption and [word.text for word in words] == ["man"]
    assert write_out(caption, found, [1, 0])[0] == caption
    assert len(write_out(caption, found, [1, MOST_WRITTEN_OUT])[1]) == MOST_WRITTEN_OUT + 1


def test_places_go_with_the_words() -> None:
    caption = "two men on the left and a woman on the right"
    words = write_out(caption, mentions(caption), [2, 1])[1]
    assert [(word.text, word.place) for word in words] == [("man", "left"), ("man", "left"), ("woman", "right")]
    caption = "from left to right: a man, two women and a boy"
    words = write_out(caption, mentions(caption), [1, 2, 1])[1]
    assert [word.place for word in words] == ["left", "left+1", "left+2", "left+3"]


def test_words_as_the_caption_stands_leave_plurals_out() -> None:
    caption = "A man, two women and a Woman"
    assert [(word.text, caption[word.start : word.end]) for word in person_words(caption)] == [
        ("man", "man"),
        ("Woman", "Woman"),
    ]


PARTS = st.sampled_from(
    [
        "a man",
        "two women",
        "a group of friends",
        "People",
        "men",
        "the",
        "of",
        ",",
        "and",
        "on the left",
        "a baby elephant",
    ]
    + [
        "five",
        "young",
        "couple",
        "'s",
        "-",
        "statue of",
        "É",
        "😀",
        "  ",
        "\t",
        "رجل",
        "behind",
        "no",
        "9",
        "family of four",
    ]
)


@given(parts=st.lists(PARTS, max_size=12), number=st.integers(0, 9))
def test_words_are_where_they_say_whatever_the_caption(parts: list[str], number: int) -> None:
    caption = " ".join(parts)
    found = mentions(caption)
    counts = [number if one.count is None else one.count for one in found]
    text, words = write_out(caption, found, counts)
    assert [word.text for word in words] == [text[word.start : word.end] for word in words]
    assert [word.start for word in words] == sorted({word.start for word in words})
    assert len(words) == sum(count for count in counts if 1 <= count <= MOST_WRITTEN_OUT)
    _check_order(caption, found)


@given(st.text(max_size=60))
def test_any_text_can_be_read(caption: str) -> None:
    found = mentions(caption)
    assert write_out(caption, found, [0] * len(found))[0] == caption
    _check_order(caption, found)


def _check_order(caption: str, found: list[Mention]) -> None:
    """Mentions follow each other without overlap, inside the caption."""
    edges = [edge for one in found for edge in (one.start, one.end)]
    assert edges == sorted(edges) and all(0 <= edge <= len(caption) for edge in edges)


def test_ten_thousand_characters_are_read() -> None:
    caption = "a man and two women on the left, " * 300
    found = mentions(caption)
    assert len(found) == 600
    assert mentions("x" * 10_000) == mentions("of " * 3_000) == mentions("left of " * 1_250) == []
