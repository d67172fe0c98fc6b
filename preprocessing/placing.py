"""Where a caption says that its people are: "on the left", "second from the right", "behind a woman".

Left and right are the viewer's, as captioners have them. A place is a wish about ranks: among n people from left to
right, or from back to front, where a nearer person fills more of the picture.
"""

import re
from collections.abc import Sequence

# Place -> (axis, rank from the front of the line if >= 0, from its end if < 0); None: the middle.
PLACES: dict[str, tuple[str, int | None]] = {
    "left": ("x", 0),
    "right": ("x", -1),
    "middle": ("x", None),
    **{f"left+{k}": ("x", k) for k in range(1, 8)},
    **{f"right+{k}": ("x", -1 - k) for k in range(1, 8)},
    "behind": ("depth", 0),
    "front": ("depth", -1),
}
# A caption that lists everybody "from left to right": its k-th person is the k-th of the line.
LINES = {"left to right": "left", "right to left": "right"}
_ORDINALS = {"second": 1, "third": 2, "fourth": 3, "fifth": 4}
# Alternatives are tried from left to right, the longer ones first; each begins with a literal word, so that a search is
# linear in the caption's length.
_ABSOLUTE = re.compile(
    r"\b(?:(?P<ordinal>second|third|fourth|fifth) (?:person )?from (?:the )?(?P<from>left|right)"
    r"|(?:on|at|to|in) the (?:very |far |extreme )?(?P<side>left|right)(?:[ -]hand)?(?: side)?(?! of\b)(?! hand\b)"
    r"|(?P<end>leftmost|rightmost)"
    r"|(?:in|at) the (?:very )?(?P<middle>middle|center|centre)(?! of\b)"
    r"|(?:in|at) the (?P<front>foreground|front)(?! of\b)"
    r"|(?:in|at) the (?P<back>background|back)(?! of\b))",
    re.IGNORECASE,
)
_RELATIVE = re.compile(
    r"\b(?:(?:on |to |at )?(?:the )?(?P<side>left|right)(?: side)? of"
    r"|(?P<front>in front of)|(?P<back>behind)|(?P<between>in between|between))\b",
    re.IGNORECASE,
)
_LINE = re.compile(r"\b(?:from )?(?P<start>left)[ -]to[ -]right\b|\bfrom right to left\b", re.IGNORECASE)
# Between a place and the noun that it introduces: "on the left is a young man".
_INTRODUCES = re.compile(
    r"\s*[,:]?\s*(?:there\s+)?(?:(?:is|are|stands?|sits?|we\s+see|can\s+be\s+seen)\s+)?"
    r"(?:(?:a|an|the|one|two|three|four|his|her|their|another)\s+)?(?:(?!and\b|with\b|of\b)[\w-]+\s+){0,2}$",
    re.IGNORECASE,
)
_NEAR = 80  # characters between a person and the place that belongs to it


def place_mentions(caption: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """For each mention (start, end) of the caption a key of PLACES or LINES, "" where nothing is said."""
    line = _LINE.search(caption)
    if line:
        return ["left to right" if line["start"] else "right to left"] * len(spans)
    places = [""] * len(spans)
    for match in _RELATIVE.finditer(caption):
        _relative(caption, spans, match, places)
    for match in _ABSOLUTE.finditer(caption):
        owner = _owner(caption, spans, match.start(), match.end(), depth=bool(match["front"] or match["back"]))
        if owner is not None:
            places[owner] = _absolute(match)
    return places


def in_line(place: str, index: int) -> str:
    """The place of a caption's word number `index`, where `place` is a line; any other place as it is."""
    if place not in LINES:
        return place
    side = f"{LINES[place]}+{index}" if index else LINES[place]
    return side if side in PLACES else ""


def misplacement(place: str, rank: int, count: int) -> float:
    """How far a person of this rank (0 = leftmost or hindmost) among `count` is from the place: 0 … 1.

    >>> misplacement("left", 0, 3), misplacement("right", 0, 3), misplacement("middle", 0, 3)
    (0.0, 1.0, 0.5)
    """
    if not place or count < 2:
        return 0.0
    wanted = PLACES[place][1]
    target = (count - 1) / 2 if wanted is None else min(wanted, count - 1) if wanted >= 0 else max(count + wanted, 0)
    return abs(rank - target) / (count - 1)


def _absolute(match: re.Match[str]) -> str:
    if match["ordinal"]:
        return f"{match['from'].lower()}+{_ORDINALS[match['ordinal'].lower()]}"
    if match["side"] or match["end"]:
        return (match["side"] or match["end"]).lower().removesuffix("most")
    return "middle" if match["middle"] else "front" if match["front"] else "behind"


def _owner(caption: str, spans: Sequence[tuple[int, int]], start: int, end: int, depth: bool) -> int | None:
    """The mention that a place phrase at caption[start:end] belongs to.

    The next one where the phrase introduces it ("on the left a man"), else the last one before it.
    """
    before = next((k for k in reversed(range(len(spans))) if spans[k][1] <= start), None)
    after = next((k for k in range(len(spans)) if spans[k][0] >= end), None)
    between = caption[spans[before][1] : start] if before is not None else ""
    if after is not None and spans[after][0] - end <= _NEAR and _INTRODUCES.match(caption[end : spans[after][0]]):
        if before is None or re.search(r"(?:,|;|:|\.|\band)\s*$", between):
            return after
    if before is None or len(between) > _NEAR:
        return None
    # "A man with mountains in the background": the mountains are.
    if depth and not re.fullmatch(r"\s*(?:who )?(?:is |are )?(?:\w+ing\s+)?", between):
        return None
    return None if re.search(r"[;.]", between) else before


def _relative(caption: str, spans: Sequence[tuple[int, int]], match: re.Match[str], places: list[str]) -> None:
    """ "A to the left of B" places A and B, where both are people."""
    before = next((k for k in reversed(range(len(spans))) if spans[k][1] <= match.start()), None)
    after = next((k for k in range(len(spans)) if spans[k][0] >= match.end()), None)
    if before is None or after is None:
        return
    if spans[after][0] - match.end() > _NEAR or not _INTRODUCES.match(caption[match.end() : spans[after][0]]):
        return  # "a man behind a desk and a woman"
    gap = caption[spans[before][1] : match.start()]
    if len(gap) > _NEAR or re.search(r"[,;.]|\band\b", gap):
        return
    if match["between"]:
        places[before] = "middle"
        return
    if match["side"]:
        first = match["side"].lower()
        second = "right" if first == "left" else "left"
    else:
        first, second = ("front", "behind") if match["front"] else ("behind", "front")
    places[before] = places[before] or first
    places[after] = places[after] or second
