"""CLIP's byte-pair tokenizer, learned from the world's own captions: the real class with a small vocabulary."""

import json
from collections.abc import Iterable
from typing import Any

import infra.torchvision_ops  # noqa: F401

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32


def clip_tokenizer(texts: Iterable[str], vocabulary: int = 1000) -> CLIPTokenizer:
    """Learn merges from `texts`; any other word falls back to letters, as in CLIP's own vocabulary.

    Every byte is in it, inside and at the end of a word, so nothing is unknown.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    stock = CLIPTokenizer().backend_tokenizer
    learner.normalizer, learner.pre_tokenizer = stock.normalizer, stock.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        # Letters that end a word would else be numbered in the order of a hash table: anew in every process.
        special_tokens=[letter + "</w>" for letter in alphabet],
        show_progress=False,
    )
    learner.train_from_iterator(sorted(set(texts)), trainer)
    learned = _model_json(learner)
    vocabulary_of = dict(learned["vocab"])
    for special in (BOS, EOS):
        vocabulary_of[special] = len(vocabulary_of)
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary_of, merges=merges, model_max_length=MAX_TOKENS)


def _model_json(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())["model"]
