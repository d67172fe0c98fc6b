"""One photo's subjects: its caption written out, its words bound to its people, whoever cannot be one left out.

Everybody in the picture takes part in the binding, and only then are people filtered out: else the word of one who is
left out would go to another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.optimize import linear_sum_assignment

from infra.settings import BindingSettings, FilterSettings
from preprocessing.binding import Subject, bind
from preprocessing.filtering import LeftOut, is_too_crowded, people_left_out
from preprocessing.mentions import MOST_WRITTEN_OUT, Mention, Word, mentions, write_out
from preprocessing.photos import Reason
from preprocessing.segmentation import People, Person
from preprocessing.subject_crops import subject_crop

# Head and shoulders tell who is a man and who a woman; in the square around a whole body they are small.
# Small people are read more surely from several crops than from one (tests/benchmarks/results).
_PORTRAITS = (1.2, 1.4, 1.6)  # height over width
_ORDER_MARGIN = 0.02  # mean cosine by which scores must beat the order in which a caption names its people


class Scorer(Protocol):
    """The models that binding asks; `preprocessing.precompute.Precomputer` is one."""

    def word_scores(self, crops: Sequence[Image.Image], words: Sequence[Word]) -> Float[np.ndarray, "words people"]:
        """How well each word fits each person's crop: cosines."""
        ...

    def token(self, caption: str, subject: Subject) -> int | None:
        """Place of the subject's word among the prompt's tokens; None where the prompt is cut before it."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a photo's people. Without subjects `reason` and `detail` say why the photo is refused.

    caption: as it is trained on; written: as the captioner wrote it. subjects: with their token, in caption order.
    """

    caption: str
    written: str
    subjects: list[tuple[Subject, int]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    reason: Reason | None = None
    detail: str = ""

    def record(self) -> dict[str, Any]:
        """What of it a sample's json holds beside the subjects: only what there is to tell."""
        about: dict[str, Any] = {"caption": self.caption}
        if self.caption != self.written:
            about["caption_as_written"] = self.written
        if self.left_out:
            about["left_out"] = [one.record() for one in self.left_out]
        return about


def find_subjects(
    image: Image.Image,
    written: str,
    people: People,
    faces: Sequence[Mapping[str, Any]],
    scorer: Scorer,
    pixels: int,
    binding: BindingSettings,
    filters: FilterSettings,
    given: Sequence[Subject] | None = None,
) -> Found:
    """Bind the words of the caption `written` to the people, for CLIP crops of `pixels` a side.

    given: the binding that came with the photo, sorted by place in the caption; the caption then stays as it is.
    ValueError where the instance map has another size than the picture.
    """
    if people.instances.shape != (image.height, image.width):
        height, width = people.instances.shape
        raise ValueError(f"a mask of {width} x {height} for a picture of {image.width} x {image.height}")
    if is_too_crowded(people, filters):
        detail = f"{len(people.people)} people, at most {filters.max_people}"
        return Found(written, written, reason=Reason.TOO_MANY_PEOPLE, detail=detail)
    theirs = faces_of(people, faces)
    caption, bound = written, list(given or [])
    if given is None:
        caption, words, told, scores = _read(image, written, people, scorer, pixels)
        bound = bind(words, people.people, scores, theirs, 0.0 if told else _ORDER_MARGIN)
    others = [face for face in faces if not any(face is known for known in theirs.values())]
    left_out = people_left_out(image, people, theirs, others, filters)
    unsure = [s for s in bound if binding.margin > 0 and s.binding is not None and s.binding < binding.margin]
    gone = {one.instance for one in left_out}
    left_out += [
        LeftOut(one.instance, Reason.AMBIGUOUS, f'"{one.word}" by {one.binding:.4f}, at least {binding.margin:g}')
        for one in unsure
        if one.instance not in gone
    ]
    gone |= {one.instance for one in unsure}
    tokens = [(subject, scorer.token(caption, subject)) for subject in bound if subject.instance not in gone]
    # A word beyond the prompt's last token cannot carry anybody.
    subjects = [(subject, token) for subject, token in tokens if token is not None]
    if subjects:
        return Found(caption, written, subjects, left_out)
    if bound and not tokens:
        first = next(one for one in left_out if one.instance in {subject.instance for subject in bound})
        return Found(caption, written, [], left_out, first.reason, first.detail)
    return Found(caption, written, [], left_out, Reason.NO_PERSON_WORD, f"caption: {_short(caption)}")


def faces_of(people: People, faces: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Instance number -> the largest face whose centre lies on that person's mask."""
    height, width = people.instances.shape
    found: dict[int, Mapping[str, Any]] = {}

    def area(face: Mapping[str, Any]) -> float:
        x1, y1, x2, y2 = face["box"]
        return float((x2 - x1) * (y2 - y1))

    for face in sorted(faces, key=area):
        x, y = (face["box"][0] + face["box"][2]) / 2, (face["box"][1] + face["box"][3]) / 2
        if 0 <= x < width and 0 <= y < height and (instance := int(people.instances[int(y), int(x)])):
            found[instance] = face
    return found


def portrait_crops(image: Image.Image, people: People, person: Person, pixels: int) -> list[Image.Image]:
    """Head and shoulders of a person, without what is around them, also mirrored: what words are compared with."""
    x1, y1, x2, y2 = person.box
    mask = people.instances == person.instance
    boxes = [(x1, y1, x2, min(y2, y1 + portrait * (x2 - x1))) for portrait in _PORTRAITS]
    return [subject_crop(image, mask, box, pixels, flip=flip) for box in boxes for flip in (False, True)]


def _read(
    image: Image.Image, written: str, people: People, scorer: Scorer, pixels: int
) -> tuple[str, list[Word], bool, np.ndarray | None]:
    """The caption written out, its words, whether their order says nothing of who is where, and the words' scores."""
    found = mentions(written)
    crops: list[Image.Image] = []

    def scores(words: Sequence[Word]) -> np.ndarray:
        if not crops:
            crops.extend(crop for one in people.people for crop in portrait_crops(image, people, one, pixels))
        return scorer.word_scores(crops, words).reshape(len(words), len(people.people), -1).mean(2)

    counts = _counts(found, len(people.people), scores)
    caption, words = write_out(written, found, counts)
    told = any(word.place for word in words) or any(
        mention.several and count > 1 for mention, count in zip(found, counts, strict=True)
    )
    several = len({word.text.lower() for word in words}) > 1 and len(people.people) > 1
    return caption, words, told, scores(words) if several else None


def _counts(found: Sequence[Mention], people: int, scores: Any) -> list[int]:
    """How many people each mention stands for: what it says, else what the picture leaves for it.

    Several plurals without a number ("men and women") share out who is left as their scores have it.
    """
    open_ones = [k for k, mention in enumerate(found) if mention.count is None]
    counts = [mention.count or 0 for mention in found]
    rest = people - sum(counts)
    if not open_ones or not len(open_ones) <= rest <= MOST_WRITTEN_OUT:
        return counts
    if len(open_ones) == 1:
        counts[open_ones[0]] = rest
        return counts
    fit = scores([Word(mention.word, 0, 0) for mention in found])

    def total(shared: Iterable[int]) -> float:
        each = [*counts]
        for k, count in zip(open_ones, shared, strict=True):
            each[k] = count
        rows = np.repeat(np.arange(len(found)), each)
        return float(fit[rows][linear_sum_assignment(fit[rows], maximize=True)].sum())

    fewest = 2 if rest >= 2 * len(open_ones) else 1  # a plural is two at least
    for k, count in zip(open_ones, max(_splits(rest, len(open_ones), fewest), key=total), strict=True):
        counts[k] = count
    return counts


def _splits(total: int, parts: int, fewest: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as `parts` numbers of at least `fewest`."""
    if parts == 1:
        return [(total,)]
    firsts = range(fewest, total - fewest * (parts - 1) + 1)
    return [(first, *others) for first in firsts for others in _splits(total - first, parts - 1, fewest)]


def _short(text: str) -> str:
    # It goes into a table that people read.
    return text if len(text) <= 200 else f"{text[:200]} … ({len(text)} characters)"
