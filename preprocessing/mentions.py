"""The people whom a caption mentions, and the caption with every plural written out as one word per person.

"Two women and a man" becomes "a woman and a woman and a man": a word can then carry one person. How many a plural
without a number stands for ("men", "a group of friends") is seen in the picture, not in the caption.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from preprocessing.people_words import (
    ADJECTIVES,
    ARTICLES,
    COLLECTIVE,
    DETERMINERS,
    FIGURES,
    FOLLOWERS,
    GENERIC,
    GROUPS,
    MADE_OF,
    MEDIA,
    NEGATIONS,
    NOT_ADJECTIVES,
    NUMBERS,
    PLURAL,
    PRECEDERS,
    SINGULAR,
    SOME,
    TOKEN,
)
from preprocessing.placing import in_line, place_mentions

MOST_WRITTEN_OUT = 8  # of one phrase; more would fill the prompt's 77 tokens with "a person and a person"


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption that names one person; `start` and `end` are character offsets.

    place: where the caption says that the person is, a key of `placing.PLACES`, "" where it does not say.
    """

    text: str
    start: int
    end: int
    place: str = ""


@dataclass(frozen=True, slots=True)
class Mention:
    """A phrase for one person or several.

    caption[start:end] is the noun of a single person, or the whole phrase of several with number and adjectives.
    count: how many they are; None where only the picture can tell. one: the phrase for one of them ("a young woman"),
    "" for a single person. place: a key of `placing.PLACES`, or of `placing.LINES` where the caption lists a line.
    """

    start: int
    end: int
    word: str
    count: int | None
    one: str = ""
    place: str = ""

    @property
    def several(self) -> bool:
        return bool(self.one)


def mentions(caption: str) -> list[Mention]:
    """The people whom the caption mentions, in its order.

    Left out are nouns that describe something else ("a model train"), people made of stone or paint unless the caption
    begins by calling the picture itself a painting, people who are not there ("no people"), a person named a second
    time ("the man"), and a plural whose members follow it ("two people, a man and a woman").
    """
    tokens = [_Token(match[0], match.start(), match.end()) for match in TOKEN.finditer(caption)]
    found: list[tuple[Mention, int, int]] = []  # with the first and the last of its tokens
    for i, token in enumerate(tokens):
        mention = _mention_at(caption, tokens, i)
        if mention is None:
            continue
        first = i
        while first and tokens[first - 1].start >= mention.start:
            first -= 1
        if _is_definite(caption, tokens, i) and any(known.word == token.word for known, _, _ in found):
            continue  # the one that was named before
        if not _is_figure(tokens, first, anybody=bool(found)) and not _is_denied(tokens, first):
            found.append((mention, first, i))
    kept = [mention for k, (mention, _, _) in enumerate(found) if not _is_explained(caption, found, k)]
    places = place_mentions(caption, [(mention.start, mention.end) for mention in kept])
    return [replace(mention, place=place) for mention, place in zip(kept, places, strict=True)]


def write_out(caption: str, found: Sequence[Mention], counts: Sequence[int]) -> tuple[str, list[Word]]:
    """The caption with each mention of several people written out `counts` times, and its words, one per person.

    A count of 0, or above `MOST_WRITTEN_OUT`, leaves the phrase as it is, and its people without a word. A single
    person's count is 1 (or 0).

    >>> write_out("two women on the beach", mentions("two women on the beach"), [2])[0]
    'a woman and a woman on the beach'
    """
    pieces: list[str] = []
    words: list[Word] = []
    done = length = 0
    for mention, count in zip(found, counts, strict=True):
        if not 1 <= count <= MOST_WRITTEN_OUT:
            continue
        pieces.append(caption[done : mention.start])
        length += len(pieces[-1])
        if mention.several:
            text = _listed(mention.one, count)
            if caption[mention.start].isupper():
                text = text[0].upper() + text[1:]
            for k in range(count):
                # "a, a and a": each item is as long as the first, between them stand ", " or " and ".
                item = k * (len(mention.one) + 2) + (3 if k and k == count - 1 else 0)
                end = length + item + len(mention.one)
                words.append(Word(mention.word, end - len(mention.word), end, in_line(mention.place, len(words))))
        else:
            text = caption[mention.start : mention.end]
            words.append(Word(text, length, length + len(text), in_line(mention.place, len(words))))
        pieces.append(text)
        length += len(text)
        done = mention.end
    return "".join([*pieces, caption[done:]]), words


def person_words(caption: str) -> list[Word]:
    """The words that name one person each as the caption stands, in its order: plurals are passed over."""
    singles = [mention for mention in mentions(caption) if not mention.several]
    return write_out(caption, singles, [1] * len(singles))[1]


class _Token:
    """One word of the caption; a possessive's "'s" is not part of it."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self.possessive = re.search(r"['\u2019]s?$", text) is not None or text.lower().endswith(("s'", "s\u2019"))
        bare = re.sub(r"['\u2019]s?$", "", text)
        self.word, self.start, self.end = bare.lower(), start, start + len(bare)


def _mention_at(caption: str, tokens: Sequence[_Token], i: int) -> Mention | None:
    """The mention whose noun is token i, whatever stands around it; None where it is no noun for people."""
    token = tokens[i]
    singular = token.word in SINGULAR
    plural = None if singular else PLURAL.get(token.word)
    collective = token.word in COLLECTIVE
    if not (singular or plural or collective) or _is_hyphened(caption, token) or _describes_something(tokens, i):
        return None
    if singular:
        return Mention(token.start, token.end, token.word, 1)
    if token.possessive:
        return None  # "women's shoes"
    if collective:
        return _collective(caption, tokens, i)
    assert plural is not None
    return _several(caption, tokens, i, plural)


def _several(caption: str, tokens: Sequence[_Token], i: int, word: str) -> Mention | None:
    """A plural noun with what belongs to it on its left: adjectives, number, determiner, "a group of"."""
    k, adjectives, number = i - 1, list[str](), None
    while k >= 0 and len(adjectives) < 4 and _touching(caption, tokens, k) and _may_describe(tokens[k].word):
        adjectives.insert(0, tokens[k].word)
        k -= 1
    quantity = k >= 0 and _touching(caption, tokens, k) and tokens[k].word
    if not (quantity and (_number(quantity) or quantity in SOME | DETERMINERS | {"both", "all", "of"})):
        # Nothing says that the words before are adjectives of this noun: only well-known ones are.
        known = 0
        while known < len(adjectives) and adjectives[-1 - known] in ADJECTIVES:
            known += 1
        adjectives, k = adjectives[len(adjectives) - known :], i - 1 - known
    determiner = ""
    while k >= 0 and _touching(caption, tokens, k):
        current = tokens[k].word
        if number is None and _number(current):
            number = _number(current)
        elif current == "both":
            number = 2
        elif current in DETERMINERS and not determiner:
            determiner = current
        elif current not in SOME and current != "all":
            break
        k -= 1
    if k >= 1 and tokens[k].word == "of" and _touching(caption, tokens, k) and _touching(caption, tokens, k - 1):
        if tokens[k - 1].word in GROUPS:
            number = number or GROUPS[tokens[k - 1].word]
            k -= 2
            if k >= 0 and _touching(caption, tokens, k) and tokens[k].word in ADJECTIVES | {"large", "small"}:
                k -= 1
            if k >= 0 and _touching(caption, tokens, k) and tokens[k].word in ARTICLES | DETERMINERS:
                k -= 1
        elif tokens[k - 1].word in ("dozens", "hundreds", "thousands", "lots"):
            return None
        elif tokens[k - 1].word == "one":  # "one of the men"
            number, k, determiner = 1, k - 2, ""
    keep = determiner if determiner not in ("", "these", "those") else ""
    phrase = " ".join([*adjectives, word])
    return Mention(tokens[k + 1].start, tokens[i].end, word, number, f"{keep or _article(phrase)} {phrase}")


def _collective(caption: str, tokens: Sequence[_Token], i: int) -> Mention | None:
    """ "A couple", "a family of four"; the phrase of "a group of friends" belongs to the friends."""
    count, end, k = COLLECTIVE[tokens[i].word], tokens[i].end, i - 1
    if tokens[i].possessive:
        return None
    if i + 1 < len(tokens) and tokens[i + 1].word == "of":
        size = _number(tokens[i + 2].word) if i + 2 < len(tokens) else None
        named = any(other.word in PLURAL for other in tokens[i + 2 : i + 7])
        if size is None or named:
            return None
        count, end = size, tokens[i + 2].end
    adjectives = list[str]()
    while k >= 0 and _touching(caption, tokens, k) and tokens[k].word in ADJECTIVES:
        adjectives.insert(0, tokens[k].word)
        k -= 1
    bare = k < 0 and tokens[i].word == "couple"  # as captioners begin: "couple on a bench"
    if not bare and (k < 0 or not _touching(caption, tokens, k) or tokens[k].word not in ARTICLES | DETERMINERS):
        return None  # "family portrait", "group photo"
    if end == tokens[i].end and i + 1 < len(tokens) and tokens[i + 1].word in MEDIA | {"room", "car", "dinner", "home"}:
        return None
    phrase = " ".join([*[word for word in adjectives if word not in ("large", "small", "big")], "person"])
    return Mention(tokens[max(k, 0)].start, end, "person", count, f"{_article(phrase)} {phrase}")


def _describes_something(tokens: Sequence[_Token], i: int) -> bool:
    """Whether the noun stands before or behind a word that makes it the name of something else."""
    word = tokens[i].word
    before = tokens[i - 1].word if i else ""
    after = tokens[i + 1].word if i + 1 < len(tokens) else ""
    followers = FOLLOWERS.get(word, frozenset())
    if (
        before in MADE_OF
        or before in PRECEDERS.get(word, ())
        or not followers.isdisjoint({after, after.removesuffix("s")})
    ):
        return True
    if word == "model" and after == "of":
        return True
    if tokens[i].possessive:
        return False
    # "A baby boy", "a female singer": the last noun is the person.
    if after in SINGULAR or after in PLURAL:
        return not after == "people" and word in SINGULAR
    adjective = word in ("male", "female", "adult", "human")
    return adjective and bool(after) and after not in NOT_ADJECTIVES and not after.endswith("ing")


def _is_figure(tokens: Sequence[_Token], first: int, anybody: bool) -> bool:
    """Whether the phrase that begins at token `first` is what a statue or a picture within the picture shows."""
    k = first - 1
    while k >= 0 and (tokens[k].word in ARTICLES | DETERMINERS or _may_describe(tokens[k].word)) and first - k < 5:
        k -= 1
    if k < 1 or tokens[k].word != "of":
        return False
    shown = tokens[k - 1].word
    return shown in FIGURES or (shown in MEDIA and (anybody or k > 6))


def _is_denied(tokens: Sequence[_Token], first: int) -> bool:
    return first > 0 and tokens[first - 1].word in NEGATIONS


def _is_explained(caption: str, found: Sequence[tuple[Mention, int, int]], k: int) -> bool:
    """Whether those who follow a general plural behind a comma are its members, as many as it says."""
    mention = found[k][0]
    if not mention.several or mention.word not in GENERIC or k + 1 == len(found):
        return False
    gap = caption[mention.end : found[k + 1][0].start]
    if not re.match(r"\s*[,:(\u2013\u2014-]", gap) or len(TOKEN.findall(gap)) > 3:
        return False
    sizes = [other.count for other, _, _ in found[k + 1 :]]
    return mention.count is None or None in sizes or sum(filter(None, sizes)) == mention.count


def _is_hyphened(caption: str, token: _Token) -> bool:
    return caption[token.start - 1 : token.start] == "-" or caption[token.end : token.end + 1] == "-"


def _is_definite(caption: str, tokens: Sequence[_Token], i: int) -> bool:
    """Whether "the" stands before noun i, adjectives passed over."""
    k = i - 1
    while k >= 0 and _touching(caption, tokens, k) and tokens[k].word in ADJECTIVES:
        k -= 1
    return k >= 0 and _touching(caption, tokens, k) and tokens[k].word in ("the", "this", "that")


def _touching(caption: str, tokens: Sequence[_Token], k: int) -> bool:
    """Whether only spaces stand between tokens k and k + 1."""
    return not tokens[k].possessive and caption[tokens[k].end : tokens[k + 1].start].isspace()


def _may_describe(word: str) -> bool:
    return not (
        word in NOT_ADJECTIVES
        or word in ARTICLES | DETERMINERS | SOME | NEGATIONS
        or word in ("both", "all", "couple")
        or _number(word)
        or (word in SINGULAR and word not in ADJECTIVES)
        or word in PLURAL
        or (word.endswith("s") and not word.endswith("ss"))  # "two dogs chasing women"
    )


def _number(word: str) -> int | None:
    if word in NUMBERS:
        return NUMBERS[word]
    return int(word) if re.fullmatch(r"[1-9][0-9]?", word) else None


def _listed(one: str, count: int) -> str:
    return one if count == 1 else f"{', '.join([one] * (count - 1))} and {one}"


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" and not phrase.startswith(("european", "uni", "one")) else "a"
