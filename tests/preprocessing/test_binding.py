"""Words to people and words to tokens, with a real BPE tokenizer of CLIP's kind."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from preprocessing.binding import Word, bind, person_words, token_index
from preprocessing.segmentation import Person


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE, trained here on little: "man" is one token, "woman" and "businesswoman" are several."""
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["man man man a a a of of photo photo on on beach wom wom busi busi ness"] * 9, trainer)
    merges = json.loads(backend.to_str())["model"]["merges"]
    words = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    words += [joined for joined in dict.fromkeys("".join(pair) for pair in merges) if joined not in words]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[tuple(pair) for pair in merges], model_max_length=32
    )


def tokens(tokenizer: CLIPTokenizer, caption: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(caption)["input_ids"])


def person(instance: int, area: float = 0.2, score: float = 0.9) -> Person:
    return Person(instance, score, (10.0 * instance, 0.0, 10.0 * instance + 8, 20.0), area)


def test_words_that_name_one_person() -> None:
    caption = "A man's hat, two women, a Woman, a snowman, a man-made lake and a businesswoman"
    words = person_words(caption)
    assert [word.text for word in words] == ["man", "Woman", "businesswoman"]
    assert all(caption[word.start : word.end] == word.text for word in words)
    assert person_words("") == person_words("an empty beach") == []


def test_order_binds_equal_words_from_left_to_right() -> None:
    words = person_words("a man and a man on the beach")
    subjects = bind(words, [person(2), person(1)])
    assert [(subject.word, subject.start, subject.instance) for subject in subjects] == [("man", 2, 1), ("man", 12, 2)]
    assert subjects[0].box == person(1).box


def test_more_people_than_words_binds_the_largest() -> None:
    subjects = bind(person_words("a man and a woman"), [person(1, 0.05), person(2, 0.3), person(3, 0.2)])
    assert [subject.instance for subject in subjects] == [2, 3]


def test_more_words_than_people_leaves_the_last_unbound() -> None:
    subjects = bind(person_words("a man looking at a woman"), [person(1)])
    assert [(subject.word, subject.instance) for subject in subjects] == [("man", 1)]
    assert bind([], [person(1)]) == bind(person_words("a man"), []) == []


def test_scores_overrule_the_order_only_when_they_clearly_disagree() -> None:
    words, people = person_words("a man and a woman"), [person(1), person(2)]
    clear = np.array([[0.1, 0.9], [0.9, 0.1]])
    assert [subject.instance for subject in bind(words, people, clear)] == [2, 1]
    unclear = np.array([[0.50, 0.51], [0.51, 0.50]])
    assert [subject.instance for subject in bind(words, people, unclear)] == [1, 2]
    with pytest.raises(ValueError, match="do not fit"):
        bind(words, people, np.zeros((2, 3)))


def test_scores_with_repeated_words_keep_their_order() -> None:
    words = person_words("a man, a woman and a man")
    scores = np.array([[0.1, 0.9, 0.9], [0.9, 0.1, 0.1], [0.1, 0.9, 0.9]])
    assert [subject.instance for subject in bind(words, [person(1), person(2), person(3)], scores)] == [2, 1, 3]


def test_the_margin_to_the_next_best_binding_is_told() -> None:
    words, people = person_words("a man and a woman"), [person(1), person(2)]
    scores = np.array([[0.30, 0.20], [0.21, 0.25]])
    assert [subject.binding for subject in bind(words, people, scores)] == pytest.approx([0.14, 0.14])
    # Order against scores, which are too close to overrule it: worse than its rival by as much.
    assert [subject.binding for subject in bind(words, people, scores[:, ::-1], margin=0.2)] == pytest.approx(
        [-0.14] * 2
    )
    # Of three people the clear one is sure and the other two are not.
    words = person_words("a man, a woman and a boy")
    scores = np.array([[0.3, 0.29, 0.0], [0.29, 0.29, 0.0], [0.0, 0.0, 0.4]])
    binding = [subject.binding for subject in bind(words, [person(1), person(2), person(3)], scores)]
    assert binding == pytest.approx([0.01, 0.01, 0.69], abs=1e-3)


def test_places_are_respected_without_scores_and_outweigh_them() -> None:
    people = [person(1), person(2, 0.3), person(3)]
    words = person_words("a man on the right and a woman on the left")
    assert [subject.instance for subject in bind(words, people)] == [3, 1]
    assert [subject.instance for subject in bind(words, people, np.array([[0.9, 0.0, 0.0], [0.0, 0.0, 0.9]]))] == [3, 1]
    words = person_words("a man behind a woman")
    assert [subject.instance for subject in bind(words, [person(1, 0.1), person(2, 0.4)])] == [1, 2]
    assert [subject.instance for subject in bind(words, [person(1, 0.4), person(2, 0.1)])] == [2, 1]


def test_faces_travel_with_their_person() -> None:
    face = {"box": [1, 2, 3, 4]}
    man, woman = bind(person_words("a man and a woman"), [person(1), person(2)], faces={2: face})
    assert (man.face, woman.face) == (None, face)
    assert woman.record()["face"] == face and woman.record()["box"] == list(person(2).box)


@given(count=st.integers(0, 5), names=st.lists(st.sampled_from(["man", "woman"]), max_size=5), seed=st.integers(0, 99))
def test_nobody_is_bound_twice(count: int, names: list[str], seed: int) -> None:
    words = person_words(" and ".join(f"a {name}" for name in names))
    people = [person(i + 1) for i in range(count)]
    subjects = bind(words, people, np.random.default_rng(seed).random((len(words), len(people))))
    assert len(subjects) == min(len(words), len(people))
    assert (
        len({subject.instance for subject in subjects}) == len({subject.start for subject in subjects}) == len(subjects)
    )
    for name in set(names):
        same = [subject.instance for subject in subjects if subject.word == name]
        assert same == sorted(same)


def test_a_word_of_one_token(tokenizer: CLIPTokenizer) -> None:
    caption = "a man on"
    assert tokens(tokenizer, caption)[:3] == ["<|startoftext|>", "a</w>", "man</w>"]
    assert token_index(tokenizer, caption, (2, 5)) == 2


def test_the_last_token_of_a_word_of_several(tokenizer: CLIPTokenizer) -> None:
    caption = "a businesswoman on the beach"
    pieces = tokens(tokenizer, caption)
    assert pieces[2] != "businesswoman</w>"
    index = token_index(tokenizer, caption, (2, 15))
    assert index is not None and index > 2
    assert "".join(pieces[2 : index + 1]) == "businesswoman</w>"


def test_repeated_words_have_their_own_tokens(tokenizer: CLIPTokenizer) -> None:
    caption = "a man and a woman and a man"
    pieces = tokens(tokenizer, caption)
    first, woman, second = (token_index(tokenizer, caption, (w.start, w.end)) for w in person_words(caption))
    assert first is not None and woman is not None and second is not None and first < woman < second
    assert pieces[first] == pieces[second] == "man</w>" and pieces[woman] != "a</w>"


def test_a_word_beyond_the_prompt_has_no_token(tokenizer: CLIPTokenizer) -> None:
    caption = "a " * 40 + "man"
    assert token_index(tokenizer, caption, (80, 83)) is None
    cut = "a " * 29 + "businesswoman"  # begins inside, ends outside
    assert token_index(tokenizer, cut, (58, 71)) is None
    with pytest.raises(ValueError, match="not inside"):
        token_index(tokenizer, "a man", (2, 9))


FILLERS = st.sampled_from(
    ["a", "of", "photo", "beach", "on the", "smiling,", "é", "ROSES", "2", "😀", "it's", "  ", "\t"]
)


@given(parts=st.lists(st.one_of(FILLERS, st.sampled_from(["man", "Woman", "businesswoman"])), max_size=6))
def test_every_word_is_found_by_its_letters(tokenizer: CLIPTokenizer, parts: list[str]) -> None:
    """The tokens from a word's first to the one found spell that word, whatever stands around it."""
    caption = " ".join(parts)
    encoding = tokenizer(caption, return_offsets_mapping=True, truncation=True, max_length=32)
    pieces = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    found = []
    for word in person_words(caption):
        index = token_index(tokenizer, caption, (word.start, word.end))
        if index is None:
            assert len(pieces) == 32
            continue
        first = next(i for i, (low, high) in enumerate(encoding["offset_mapping"]) if low < high and high > word.start)
        assert "".join(pieces[first : index + 1]) == f"{word.text.lower()}</w>"
        found.append(index)
    assert found == sorted(set(found))


def test_words_compare_by_place() -> None:
    assert Word("man", 2, 5) == person_words("a man")[0]
