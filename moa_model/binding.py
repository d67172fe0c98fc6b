"""Which image belongs to which token of which row of the U-Net's batch.

Axes: B rows of the U-Net's batch, P prompts, S subjects, F image feature.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from infra.errors import UserError
from moa_model.attention import AttentionMaps

Subject: TypeAlias = Image.Image | Tensor
"""A picture of the person, or its image feature [F] (so that features can be cached or interpolated)."""
SubjectsByWord: TypeAlias = Mapping[str, Subject | Sequence[Subject | None]]
"""Word of the prompt → its subject; a list binds the word's first, second, … occurrence, None leaves one plain."""


@dataclass(frozen=True)
class Subjects:
    """Subjects for every row of a U-Net batch (training, or a bare U-Net)."""

    image_BSF: Float[Tensor, "B S F"]
    token_BS: Int[Tensor, "B S"]
    """Index of the word's last token, −1 for none."""
    maps: AttentionMaps | None = None
    bound_B: Bool[Tensor, " B"] | None = None
    """False where a row's prompt has no subject at all: it takes the prior alone. None = every row has experts."""

    def for_batch(self, rows: int) -> "Subjects":
        """These subjects, if they are as many as the batch's rows; raises UserError otherwise."""
        if len(self.token_BS) != rows:
            raise UserError(f"Subjects are bound for {len(self.token_BS)} rows, but the U-Net's batch has {rows}.")
        return self


@dataclass(frozen=True)
class Binding:
    """Subjects for every prompt of a pipeline call, whatever its guidance and number of images per prompt."""

    image_PSF: Float[Tensor, "P S F"]
    token_PS: Int[Tensor, "P S"]
    guided: Callable[[], bool]
    """Whether the running call has an unconditional half: it comes first, without subjects, through the experts too."""

    def for_batch(self, rows: int) -> Subjects:
        """Repeat per image, put the unconditional half before; raises UserError if the prompts are not this many."""
        halves = 2 if self.guided() else 1
        images, rest = divmod(rows, halves * len(self.token_PS))
        if rest or not images:
            raise UserError(
                f"Subjects are bound to {len(self.token_PS)} prompts, but the U-Net's batch has {rows} rows: "
                "bind the same prompts that the pipeline is called with."
            )
        image_BSF = self.image_PSF.repeat_interleave(images, dim=0)
        token_BS = self.token_PS.repeat_interleave(images, dim=0)
        bound_B = (token_BS >= 0).any(dim=1).repeat(halves)  # both halves of a prompt's guidance go the same way
        if halves == 2:
            image_BSF = torch.cat([torch.zeros_like(image_BSF), image_BSF])
            token_BS = torch.cat([torch.full_like(token_BS, -1), token_BS])
        return Subjects(image_BSF, token_BS, bound_B=bound_B)


def bind(
    tokenizer: Any,
    prompts: Sequence[str],
    subjects: Sequence[SubjectsByWord],
    encode: Callable[[Sequence[Image.Image]], Float[Tensor, "pictures F"]],
    image_dim: int,
    guided: Callable[[], bool],
) -> Binding:
    """Bind each prompt's subjects to its words.

    Raises UserError for a word that is not in its prompt, more subjects than occurrences, or a feature of the wrong
    width. Warns, and leaves the subject out, where the prompt is cut before its word.
    """
    if len(prompts) != len(subjects):
        raise UserError(f"{len(prompts)} prompts need as many mappings of subjects, not {len(subjects)}.")
    bound: list[list[tuple[int, Subject]]] = []
    for prompt, by_word in zip(prompts, subjects, strict=True):
        bound.append(_bind_prompt(tokenizer, prompt, by_word))
    feature_of = _features([subject for row in bound for _, subject in row], encode, image_dim)
    width = max(1, *(len(row) for row in bound))
    image_PSF = torch.zeros(len(prompts), width, image_dim)
    token_PS = torch.full((len(prompts), width), -1, dtype=torch.long)
    for p, row in enumerate(bound):
        for s, (token, subject) in enumerate(row):
            image_PSF[p, s], token_PS[p, s] = feature_of[id(subject)], token
    return Binding(image_PSF, token_PS, guided)


def word_spans(prompt: str, word: str) -> list[tuple[int, int]]:
    """Where the whole word stands in the prompt, in order, whatever its case: (start, end) characters."""
    pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    return [match.span() for match in re.finditer(pattern, prompt, flags=re.IGNORECASE)] if word.strip() else []


def token_index(tokenizer: Any, prompt: str, span: tuple[int, int]) -> int | None:
    """Index of the last token of the characters ``span``, counting the start token; None if the prompt is cut before.

    Raises UserError for a tokenizer without offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} has no character offsets: load the pipeline with a fast CLIP tokenizer."
        )
    encoded = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True)
    start, end = span
    inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start and b > a]
    return inside[-1] if inside else None


def _bind_prompt(tokenizer: Any, prompt: str, by_word: SubjectsByWord) -> list[tuple[int, Subject]]:
    """(token, subject) of one prompt, in the order of the tokens."""
    bound: dict[int, Subject] = {}
    for word, given in by_word.items():
        chosen = list(given) if isinstance(given, (list, tuple)) else [given]
        spans = word_spans(prompt, word)
        if not spans:
            raise UserError(f'The word "{word}" is not in the prompt "{prompt}": name a word of the prompt.')
        if len(chosen) > len(spans):
            raise UserError(
                f'{len(chosen)} subjects for "{word}", which stands {len(spans)} times in the prompt "{prompt}".'
            )
        for span, subject in zip(spans, chosen, strict=False):
            if subject is None:
                continue
            token = token_index(tokenizer, prompt, span)
            if token is None:
                warnings.warn(f'The prompt is too long: the subject of "{word}" is lost.', stacklevel=4)
            elif token in bound:
                raise UserError(
                    f'Two subjects for one place of the prompt: "{word}" at character {span[0]} of "{prompt}".'
                )
            else:
                bound[token] = subject
    return sorted(bound.items(), key=lambda item: item[0])


def _features(
    subjects: Sequence[Subject], encode: Callable[[Sequence[Image.Image]], Tensor], image_dim: int
) -> dict[int, Float[Tensor, " F"]]:
    """Each distinct subject's image feature by id(subject)."""
    pictures = {id(subject): subject for subject in subjects if isinstance(subject, Image.Image)}
    features = {id(subject): subject for subject in subjects if isinstance(subject, Tensor)}
    if len(pictures) + len(features) != len({id(subject) for subject in subjects}):
        raise UserError("A subject is a PIL picture or an image feature (a tensor).")
    if pictures:
        features.update(zip(pictures, encode(list(pictures.values())), strict=True))
    for feature in features.values():
        if feature.shape != (image_dim,):
            raise UserError(
                f"This adapter takes image features of width {image_dim}, not of shape {tuple(feature.shape)}."
            )
    return features
