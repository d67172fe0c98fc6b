import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UserError
from moa_model.binding import Run, Spelling, Subject, Subjects, bind, token_index, word_spans
from tests.tiny_models import IMAGE_DIM, TOKENS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def _bind(prompts, subjects, guided: bool = False):
    def encode(pictures):
        return torch.stack([torch.full((IMAGE_DIM,), float(picture.getpixel((0, 0))[0])) for picture in pictures])

    run = Run(lambda: guided, lambda timestep: 1 - timestep / 1000)
    return bind([Spelling(TOKENIZER, prompts)], subjects, encode, IMAGE_DIM, run)


def _feature(value: float) -> torch.Tensor:
    return torch.full((IMAGE_DIM,), value)


def _last_token_by_prefix(prompt: str, end: int) -> int:
    """Independent of offsets: tokens of the text up to the word's end, start token not counted, is the index."""
    return len(TOKENIZER.tokenize(prompt[:end]))


@given(order=st.permutations(["man", "woman", "boy", "girl"]), bound=st.permutations(["man", "woman", "boy", "girl"]))
@settings(max_examples=30)
def test_every_subject_finds_its_word_in_every_order(order: list[str], bound: list[str]) -> None:
    prompt = "a " + " and a ".join(order) + " on the beach"
    value = {word: float(index) for index, word in enumerate(bound)}
    binding = _bind([prompt], [{word: _feature(value[word]) for word in bound}])
    expected = sorted((_last_token_by_prefix(prompt, word_spans(prompt, word)[0][1]), value[word]) for word in bound)
    assert binding.token_PS[0].tolist() == [token for token, _ in expected]
    assert binding.image_PSF[0, :, 0].tolist() == [subject for _, subject in expected]


def test_repeated_words_are_bound_by_occurrence() -> None:
    prompt = "a man, a woman and a Man"
    spans = word_spans(prompt, "man")
    assert [prompt[a:b] for a, b in spans] == ["man", "Man"]  # not the "man" in "woman"
    binding = _bind([prompt], [{"man": [_feature(1), _feature(2)]}])
    assert binding.token_PS[0].tolist() == [_last_token_by_prefix(prompt, end) for _, end in spans]
    assert binding.image_PSF[0, :, 0].tolist() == [1, 2]
    second_only = _bind([prompt], [{"man": [None, _feature(2)]}])
    assert second_only.token_PS[0].tolist() == [_last_token_by_prefix(prompt, spans[1][1])]


def test_a_word_of_several_tokens_is_bound_at_its_last() -> None:
    prompt = "a photo of a woman"
    span = word_spans(prompt, "woman")[0]
    token = token_index(TOKENIZER, prompt, span)
    assert token is not None
    ids = TOKENIZER(prompt)["input_ids"]
    assert TOKENIZER.convert_ids_to_tokens(ids[token - 1 : token + 1]) == ["wo", "man</w>"]


SPEECH = ["man", "woman", "Man", "boy", "roses", "a", "human", "wo", "beach,", "of", "manhole", "man-made"]


@given(
    words=st.lists(st.sampled_from(SPEECH), min_size=1, max_size=24),
    order=st.permutations(["man", "woman", "boy", "human"]),
    absent=st.sets(st.integers(0, 30)),
)
@settings(max_examples=80)
def test_every_occurrence_finds_its_own_token_in_any_sentence(words: list[str], order: list[str], absent: set) -> None:
    """Repeated words, parts of words, words of several tokens, prompts that are cut: by words, not by offsets."""
    prompt = " ".join(words)
    room = TOKENIZER.model_max_length - 1
    expected, lost, given_subjects = [], False, {}
    for number, word in enumerate(order):
        # "man-made" holds the word "man": a hyphen is no letter.
        places = [at for at, one in enumerate(words) if one.lower().rstrip(",").partition("-")[0] == word]
        chosen = [None if at in absent else Subject(_feature(100 * number + at)) for at in places]
        if not places:
            continue
        given_subjects[word] = chosen
        for at, subject in zip(places, chosen, strict=True):
            token = len(TOKENIZER.tokenize(" ".join([*words[:at], words[at][: len(word)]])))
            if subject is not None and token < room:
                expected.append((token, 100.0 * number + at))
            lost = lost or (subject is not None and token >= room)
    if lost:
        with pytest.warns(UserWarning, match="is lost"):
            binding = _bind([prompt], [given_subjects])
    else:
        binding = _bind([prompt], [given_subjects])
    bound = [
        (token, feature)
        for token, feature in zip(binding.token_PS[0].tolist(), binding.image_PSF[0, :, 0].tolist(), strict=True)
        if token >= 0
    ]
    assert bound == sorted(expected)


def test_a_word_that_is_cut_in_its_middle_is_lost() -> None:
    """Half of "woman" is no person."""
    for before in range(26, 32):
        prompt = "o " * before + "woman"
        whole = len(TOKENIZER.tokenize(prompt)) <= TOKENS - 2
        assert (token_index(TOKENIZER, prompt, word_spans(prompt, "woman")[0]) is not None) == whole


def test_pictures_are_encoded_once() -> None:
    picture = Image.new("RGB", (2, 2), (9, 0, 0))
    binding = _bind(["a man", "a woman"], [{"man": picture}, {"woman": picture}])
    assert binding.image_PSF[:, 0, 0].tolist() == [9, 9]


def test_rows_follow_the_pipelines_order() -> None:
    binding = _bind(["a man", "a photo"], [{"man": _feature(1)}, {}], guided=True)
    subjects = binding.for_batch(8)  # unconditional half first, two images for each of two prompts
    assert subjects.token_BS[:, 0].tolist() == [-1, -1, -1, -1, 2, 2, -1, -1]
    assert subjects.image_BSF[4:6, 0, 0].tolist() == [1, 1]
    assert not subjects.image_BSF[:4].any()
    assert subjects.share_B is not None  # both halves of "a photo" are the prior's
    assert subjects.share_B.tolist() == [1, 1, 0, 0] * 2
    with pytest.raises(UserError, match="2 prompts"):
        binding.for_batch(6)
    with pytest.raises(UserError, match="1 rows"):
        Subjects(torch.zeros(1, 1, IMAGE_DIM), torch.zeros(1, 1, dtype=torch.long)).for_batch(2)


def test_a_cut_prompt_warns_of_the_lost_subject() -> None:
    prompt = "o " * 40 + "man"
    with pytest.warns(UserWarning, match='"man" is lost'):
        binding = _bind([prompt], [{"man": _feature(1)}])
    assert binding.token_PS.tolist() == [[-1]]


@pytest.mark.parametrize(
    ("prompt", "subjects", "message"),
    [
        ("a dog", {"man": _feature(1)}, '"man" is not in the prompt'),
        ("a woman", {"man": _feature(1)}, '"man" is not in the prompt'),
        ("a man", {"": _feature(1)}, "is not in the prompt"),
        ("a man", {"man": [_feature(1), _feature(2)]}, "2 subjects"),
        ("a man and a man", {"man": _feature(1)}, '"man" stands 2 times'),
        ("a man", {"man": _feature(1), "Man": _feature(2)}, "Two subjects"),
        ("a man", {"man": torch.zeros(3)}, "width 12"),
        ("a man", {"man": "photo.png"}, "PIL picture"),
    ],
)
def test_refusals(prompt: str, subjects: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _bind([prompt], [subjects])


def test_as_many_mappings_as_prompts() -> None:
    with pytest.raises(UserError, match="2 prompts"):
        _bind(["a man", "a man"], [{"man": _feature(1)}])


def test_the_strongest_subject_scales_the_router_and_the_others_relative_to_it() -> None:
    prompt = "a man and a woman"
    both = {"man": Subject(_feature(1), strength=0.2), "woman": Subject(_feature(2), strength=0.8)}
    subjects = _bind([prompt], [both]).for_batch(1)
    assert subjects.share_B is not None and subjects.scale_BS is not None
    torch.testing.assert_close(subjects.share_B, torch.tensor([0.8]))
    torch.testing.assert_close(subjects.scale_BS, torch.tensor([[0.25, 1.0]]))
    none = _bind([prompt], [{"man": Subject(_feature(1), strength=0.0)}]).for_batch(1)
    assert none.share_B is not None and not none.share_B.any() and (none.token_BS == -1).all()


def test_a_subject_takes_part_in_its_steps_only() -> None:
    prompt = "a man and a woman"
    both = {"man": Subject(_feature(1), steps=(0.4, 1.0)), "woman": Subject(_feature(2), steps=(0.0, 0.5))}
    binding = _bind([prompt], [both])
    shown = {timestep: (binding.for_batch(1, timestep).token_BS[0] >= 0).tolist() for timestep in (999, 600, 550, 400)}
    assert shown == {999: [False, True], 600: [True, True], 550: [True, True], 400: [True, False]}


@pytest.mark.parametrize(
    "wrong", [{"strength": 1.5}, {"strength": -0.1}, {"steps": (0.5, 0.5)}, {"steps": (-0.1, 1.0)}], ids=str
)
def test_impossible_strengths_and_steps_are_refused(wrong) -> None:
    with pytest.raises(UserError, match="from 0 to 1|within 0 to 1"):
        Subject(_feature(1), **wrong)


def test_impossible_masks_and_features_are_refused() -> None:
    run = Run(lambda: False)

    def bound(feature, mask=None):
        spelled = [Spelling(TOKENIZER, ["a man"])]
        return bind(spelled, [{"man": feature}], lambda pictures: torch.zeros(0), IMAGE_DIM, run, mask)

    with pytest.raises(UserError, match="not finite"):
        bound(_feature(float("nan")))
    with pytest.raises(UserError, match=r"\[H W\]"):
        bound(_feature(1), torch.zeros(4))
    for mask in (torch.full((2, 2), 1.5), torch.full((2, 2), float("nan"))):
        with pytest.raises(UserError, match="from 0"):
            bound(_feature(1), mask)


def test_two_tokenizers_must_have_every_word_at_the_same_place() -> None:
    """As textual inversion can move it: one of them knows a word that the other spells out."""
    taught = tiny_tokenizer()
    taught.add_tokens(["beach"])
    run = Run(lambda: False)

    def bound(prompt, words):
        spelled = [Spelling(TOKENIZER, [prompt]), Spelling(taught, [prompt])]
        subjects = {word: _feature(1) for word in words}
        return bind(spelled, [subjects], lambda pictures: torch.zeros(0), IMAGE_DIM, run)

    one = _bind(["a man on the beach"], [{"man": _feature(1)}])
    assert bound("a man on the beach", ["man"]).token_PS.tolist() == one.token_PS.tolist()
    with pytest.raises(UserError, match='two tokenizers have "woman"'):
        bound("a man on the beach with a woman", ["man", "woman"])
