"""A photo's subjects: captions of every kind against people of every number, refused with a reason or kept."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from infra.settings import BindingSettings, CaptionSettings, FilterSettings, SegmentSettings, load_settings
from preprocessing.batching import Steps
from preprocessing.binding import Subject, Word, token_index
from preprocessing.catalog import PhotoRow
from preprocessing.faces import Face
from preprocessing.photos import Reason
from preprocessing.precompute import Precomputer
from preprocessing.segmentation import People, number_people
from preprocessing.shards import KeyedParts, decode_instances, encode_json, read_tar, write_tar
from preprocessing.stages import (
    ANY_BINDING,
    NO_FILTERS,
    bind_shard,
    build_shard,
    caption_shard,
    left_out_counts,
    segment_shard,
)
from preprocessing.subjects import Found, find_subjects
from tests.preprocessing.test_stages import photo
from tests.tiny_models import tiny_clip, tiny_pipeline, tiny_tokenizer

SIDE = 32
PICTURE = Image.new("RGB", (SIDE, SIDE), (90, 120, 60))
TOKENIZER = tiny_tokenizer()


def group(count: int) -> People:
    """That many people side by side, all of one size; forty of them in rows."""
    columns = min(count, 8)
    masks = []
    for k in range(count):
        mask = np.zeros((SIDE, SIDE), bool)
        top, left = 6 * (k // 8), 4 * (k % columns)
        mask[top + 1 : top + (6 if count > 8 else 30), left : left + 4] = True
        masks.append((mask, 0.9))
    return number_people(masks, (SIDE, SIDE))


class Scorer:
    """Says how well words fit the people from left to right; everything else is the real thing."""

    def __init__(self, looks: Sequence[str] = (), near: float = 0.3) -> None:
        self.looks, self.near = looks, near

    def word_scores(self, crops: Sequence[Image.Image], words: Sequence[Word]) -> np.ndarray:
        views = len(crops) // len(self.looks)
        fit = [[self.near if look == word.text.lower() else 0.0 for look in self.looks] for word in words]
        return np.repeat(np.array(fit), views, axis=1)

    def token(self, caption: str, subject: Subject) -> int | None:
        return token_index(TOKENIZER, caption, (subject.start, subject.end))


def find(
    caption: str,
    people: People,
    looks: Sequence[str] = (),
    near: float = 0.3,
    faces: Sequence[dict[str, object]] = (),
    margin: float = 0.0,
    **filters: object,
) -> Found:
    settings = FilterSettings.model_validate({**NO_FILTERS.model_dump(), **filters})
    scorer = Scorer(looks or ["man"] * len(people.people), near)
    return find_subjects(PICTURE, caption, people, faces, scorer, 16, BindingSettings(margin=margin), settings)


def bound(found: Found) -> list[tuple[str, int]]:
    return [(subject.word, subject.instance) for subject, _ in found.subjects]


def test_plurals_are_written_out_and_the_original_is_kept() -> None:
    found = find("two women and a man", group(3), ["woman", "man", "woman"])
    assert found.caption == "a woman and a woman and a man" and bound(found) == [
        ("woman", 1),
        ("woman", 3),
        ("man", 2),
    ]
    assert found.record() == {"caption": found.caption, "caption_as_written": "two women and a man"}
    assert find("a man", group(1)).record() == {"caption": "a man"}
    for subject, token in found.subjects:
        assert found.caption[subject.start : subject.end] == subject.word
        assert token == token_index(TOKENIZER, found.caption, (subject.start, subject.end))


def test_the_picture_says_how_many_a_plural_is() -> None:
    assert find("men on a bench", group(3)).caption == "a man, a man and a man on a bench"
    assert find("a man and women", group(3)).caption == "a man and a woman and a woman"
    looks = ["woman", "man", "man", "woman", "man"]
    found = find("men and women", group(5), looks)
    assert found.caption == "a man, a man and a man and a woman and a woman"
    assert Counter(word for word, _ in bound(found)) == {"man": 3, "woman": 2}
    assert all(looks[instance - 1] == word for word, instance in bound(found))
    # Nobody left for the plural, or too many to write out: it stays as it is.
    assert find("a man and women", group(1)).caption == "a man and women"
    assert find("people", group(40)).reason == Reason.NO_PERSON_WORD


def test_places_go_before_order_and_scores() -> None:
    people = group(3)
    assert bound(find("a man on the right and a woman on the left", people, ["man", "man", "woman"])) == [
        ("man", 3),
        ("woman", 1),
    ]
    assert bound(find("from right to left: a man, a man and a man", people)) == [("man", 3), ("man", 2), ("man", 1)]
    assert bound(find("a man in the middle", people)) == [("man", 2)]
    assert bound(find("a boy second from the right", group(4))) == [("boy", 3)]


def test_a_binding_that_is_not_sure_is_refused_with_its_reason() -> None:
    near = find("a man and a woman", group(2), ["man", "woman"], near=0.001, margin=0.01)
    assert near.reason == Reason.AMBIGUOUS and not near.subjects and "0.0020" in near.detail
    sure = find("a man and a woman", group(2), ["man", "woman"], near=0.3, margin=0.01)
    assert bound(sure) == [("man", 1), ("woman", 2)] and sure.subjects[0][0].binding == pytest.approx(0.6)
    # Scores against the order, and not by enough to overrule it: nobody can say.
    assert find("a man and a woman", group(2), ["woman", "man"], near=0.01, margin=0.01).reason == Reason.AMBIGUOUS
    assert find("a man and a woman", group(2), ["woman", "man"], near=0.01).reason is None
    # Equal words are no question, nor is a word alone.
    for caption, count in (("two men", 2), ("a man", 1)):
        found = find(caption, group(count), margin=0.9)
        assert len(found.subjects) == count and all(subject.binding is None for subject, _ in found.subjects)
        assert "binding" not in found.subjects[0][0].record()


def test_whoever_is_filtered_out_keeps_their_word() -> None:
    """The man has no face: his word does not go to the woman, and she is still a subject."""
    face = {"box": [17, 2, 19, 8], "landmarks": [], "score": 1.0}
    people = group(2)
    face["box"] = [4.5, 2, 7.5, 8]
    found = find("a man and a woman", people, ["man", "woman"], faces=[face], need_face=True)
    assert bound(found) == [("woman", 2)]
    assert found.record()["left_out"] == [
        {"instance": 1, "reason": "no_face", "detail": Reason.NO_FACE.sentence},
    ]
    nobody = find("a man and a woman", people, ["man", "woman"], need_face=True)
    assert (nobody.reason, nobody.detail) == (Reason.NO_FACE, Reason.NO_FACE.sentence)
    assert find("a man", people, max_people=1).reason == Reason.TOO_MANY_PEOPLE


LONG = "a very " + "long and winding " * 600 + "road with a man"
CASES: list[tuple[str, int, Reason | None]] = [
    ("a man", 1, None),
    ("a man", 40, None),
    ("forty men", 40, Reason.NO_PERSON_WORD),
    ("a group of people", 40, Reason.NO_PERSON_WORD),
    ("an empty beach", 1, Reason.NO_PERSON_WORD),
    ("🙂🙂🙂", 1, Reason.NO_PERSON_WORD),
    ("a man 👨‍👩‍👧 and a woman", 2, None),
    ("a\x00 man\x07 on the\x1b[31m beach", 1, None),
    ("a \u202enam\u202c man", 1, None),
    ("رجل على الشاطئ", 1, Reason.NO_PERSON_WORD),
    ("a man رجل على", 1, None),
    ("a \ud800 man", 1, None),
    ("A MAN!!!", 1, None),
    ("a man" + ", a man" * 500, 3, None),
    (LONG, 1, Reason.NO_PERSON_WORD),
    ("man" + "x" * 10_000, 1, Reason.NO_PERSON_WORD),
    ("a man " + "x" * 10_000, 1, None),
    ("", 1, Reason.NO_CAPTION),
    (" \t\n ", 1, Reason.NO_CAPTION),
    ("\x00\x01\u200b", 1, Reason.NO_CAPTION),
    ("a man and a woman", 0, Reason.NO_PERSON),
    ("{man} %s \\ \" ' </s> <image>", 1, None),
    ("none", 1, Reason.NO_PERSON_WORD),
]
MODEL_ERRORS: list[tuple[str, Callable[[], object], Reason]] = [
    ("a mask of another size", lambda: People(np.ones((8, 8), np.uint8), group(1).people), Reason.MODEL_FAILED),
    ("no result", lambda: None, Reason.MODEL_FAILED),
    ("an error", lambda: _fail(RuntimeError("CUDA out of memory")), Reason.MODEL_FAILED),
    ("an error without words", lambda: _fail(AssertionError()), Reason.MODEL_FAILED),
    ("a name in every script", lambda: _fail(OSError("ошибка 错误 🙂 \ud800")), Reason.MODEL_FAILED),
]


def _fail(error: Exception) -> object:
    raise error


class Model:
    """Captioner and segmenter that answer each photo, known by its first pixel, as they are told."""

    def __init__(self, answers: dict[object, Callable[[], object]], usual: Callable[[], object]) -> None:
        self.answers, self.usual = answers, usual

    def _answer(self, images: Sequence[Image.Image]) -> list[object]:
        return [self.answers.get(image.getpixel((0, 0)), self.usual)() for image in images]

    caption = segment = _answer

    @property
    def steps(self) -> Steps[Image.Image, object]:
        return Steps(self._answer)


@pytest.fixture(scope="module")
def precomputer(tmp_path_factory: pytest.TempPathFactory) -> Precomputer:
    from infra.settings import ModelReference

    root = tmp_path_factory.mktemp("models")
    tiny_pipeline(folder=root / "base")
    tiny_clip(folder=root / "clip")
    settings = load_settings("demo").shard.model_copy(update={"reference_pixels": 32, "reference_variants": 1})
    base = ModelReference(location=str(root / "base"), backend="diffusers")
    return Precomputer(base, ModelReference(location=str(root / "clip")), settings)


def test_whatever_the_models_say_every_photo_is_kept_or_refused_with_a_reason(precomputer: Precomputer) -> None:
    cases = [*CASES, *(("a man", index, reason) for index, (_, _, reason) in enumerate(MODEL_ERRORS))]
    pixels = [_first_pixel(index) for index in range(len(cases))]
    ingested = write_tar(
        (f"{index:02d}", {"jpg": _plain(index), "json": encode_json({"source": "folder", "origin": f"{index}.jpg"})})
        for index in range(len(cases))
    )
    captioner = Model({pixels[k]: (lambda text=case[0]: text) for k, case in enumerate(cases)}, lambda: "a man")
    crowds = {pixels[k]: (lambda count=case[1]: group(count)) for k, case in enumerate(CASES)}
    crowds |= {pixels[len(CASES) + k]: error[1] for k, error in enumerate(MODEL_ERRORS)}
    caption_settings = CaptionSettings(batch_size=7, max_new_tokens=5, num_beams=1, workers=1)
    segment_settings = SegmentSettings(
        score_threshold=0.8, mask_threshold=0.5, overlap_threshold=0.8, min_area=0.0, face_fallback=True, batch_size=3,
        workers=1,
    )  # fmt: skip
    captions, no_caption = caption_shard(ingested, captioner, caption_settings, "s")
    segments, nobody = segment_shard(ingested, Model(crowds, lambda: group(1)), segment_settings, "s")
    built, unbound = shard_of(ingested, captions, segments, precomputer)
    fates: dict[str, Reason | None] = {sample.key: None for sample in read_tar(write_tar(built))}
    for row in [*no_caption, *nobody, *unbound]:
        assert row.key not in fates and row.status == "refused" and row.detail and len(row.detail) < 400
        row.detail.encode()  # a half character would end the catalog's commit
        fates[row.key] = Reason(row.reason)
    assert fates == {f"{index:02d}": reason for index, (_, _, reason) in enumerate(cases)}
    for sample in read_tar(write_tar(built)):
        about = sample.json()
        numbers = [subject["instance"] for subject in about["subjects"]]
        assert numbers == list(range(1, len(numbers) + 1))
        assert set(np.unique(decode_instances(sample.parts["instances.png"]))) <= {0, *numbers}
        for subject in about["subjects"]:
            assert about["caption"][subject["start"] : subject["end"]].lower() == subject["word"].lower() == "man" or (
                subject["word"] == "woman"
            )


def test_faces_that_no_source_knew_are_looked_for(precomputer: Precomputer) -> None:
    class Detector:
        looked = 0

        def detect(self, image: Image.Image) -> list[Face]:
            self.looked += 1
            return [Face((0.0, 2.0, 4.0, 8.0)), Face((4.5, 2.0, 7.5, 8.0))]

    known = {"box": [0.5, 2.0, 3.5, 8.0], "landmarks": [], "score": 1.0}
    ingested = write_tar(
        (f"{k}", {"jpg": photo(k), "json": encode_json({"source": "ffhq", "origin": f"{k}.png", "faces": [known]})})
        for k in range(2)
    )
    answers = iter([group(1), group(2)])
    segmenter = Model({}, lambda: next(answers))
    settings = SegmentSettings(
        score_threshold=0.8, mask_threshold=0.5, overlap_threshold=0.8, min_area=0.0, face_fallback=True, batch_size=2,
        workers=1,
    )  # fmt: skip
    detector = Detector()
    tar, _ = segment_shard(ingested, segmenter, settings, "s", detector)  # type: ignore[arg-type]
    one, two = (sample.json() for sample in read_tar(tar))
    assert detector.looked == 1 and "faces" not in one
    assert [face["box"] for face in two["faces"]] == [[4.5, 2.0, 7.5, 8.0]]
    captions = write_tar((f"{k}", {"json": encode_json({"caption": "a man and a man"})}) for k in range(2))
    need_face = NO_FILTERS.model_copy(update={"need_face": True, "min_face": 3.5})
    built, rows = shard_of(ingested, captions, tar, precomputer, need_face)
    assert built == [] and [row.reason for row in rows] == ["face_too_small"] * 2
    need_face = need_face.model_copy(update={"min_face": 0.0})
    built, rows = shard_of(ingested, captions, tar, precomputer, need_face)
    numbers = [len(sample.json()["subjects"]) for sample in read_tar(write_tar(built))]
    assert numbers == [1, 2] and left_out_counts([built]) == {}


def shard_of(
    ingested: bytes, captions: bytes, segments: bytes, precomputer: Precomputer, filters: FilterSettings = NO_FILTERS
) -> tuple[list[KeyedParts], list[PhotoRow]]:
    """A training shard's samples without the costly columns, and the photos that have no subject."""
    bound = bind_shard(ingested, captions, segments, precomputer, ANY_BINDING, filters)
    (built,), rows = build_shard(ingested, bound, {}, precomputer.settings, "s")
    return built, rows


def _first_pixel(index: int) -> tuple[int, int, int]:
    from preprocessing.shards import decode_picture

    return decode_picture(_plain(index)).getpixel((0, 0))  # type: ignore[return-value]


def _plain(index: int) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (5 * index, 100, 200 - 5 * index)).save(buffer, "PNG")
    return buffer.getvalue()
