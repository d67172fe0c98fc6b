"""CLIP's tokenizer with the world's own vocabulary."""

from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import pytest
from transformers import CLIPTokenizer

from infra.zoo.pictures import LabelledPictures
from infra.zoo.tokenizers import BOS, EOS, MAX_TOKENS, clip_tokenizer


@pytest.fixture(scope="module")
def tokenizer(pictures: LabelledPictures) -> CLIPTokenizer:
    return clip_tokenizer([*pictures.captions, *(look for looks in pictures.looks for look in looks)])


def test_every_word_of_a_caption_is_one_token(tokenizer: CLIPTokenizer, pictures: LabelledPictures) -> None:
    for caption in pictures.captions:
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in caption.split()]


def test_looks_fit_the_text_tower(tokenizer: CLIPTokenizer, pictures: LabelledPictures) -> None:
    for text in (look for looks in pictures.looks for look in looks):
        assert len(tokenizer(text).input_ids) <= MAX_TOKENS == tokenizer.model_max_length


@pytest.mark.parametrize("text", ["zebra", "a photo of a zebra", "naïve", "x", "東京", "man's 3 hats!"])
def test_unknown_words_fall_back_to_letters(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]  # CLIP's unknown token is its end token
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_special_tokens_are_clips(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("").input_ids) == [BOS, EOS]


def test_it_is_the_same_when_learned_or_read_again(
    tokenizer: CLIPTokenizer, pictures: LabelledPictures, tmp_path: Path
) -> None:
    again = clip_tokenizer([*(look for looks in pictures.looks for look in looks), *pictures.captions])
    assert again.get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    read = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*pictures.captions, "an unheard-of zebra"]
    assert read(texts).input_ids == tokenizer(texts).input_ids
    # Fast: words can be found in it by their place in the text.
    assert read("a man", return_offsets_mapping=True)["offset_mapping"][1:3] == [(0, 1), (2, 5)]
