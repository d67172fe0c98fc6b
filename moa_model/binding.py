"""Which image belongs to which token of which row of the U-Net's batch.

Axes: B rows of the U-Net's batch, P prompts, S subjects, F image feature, H W height and width of a mask.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from infra.errors import UserError, UserNotice
from moa_model.attention import AttentionMaps
from moa_model.recording import RecordedStep, recorded_router
from moa_model.routing import FixedRouter, MaskRouter

Portrait: TypeAlias = Image.Image | Tensor
"""A picture of the person, or its image feature [F] (so that features can be cached or interpolated)."""


@dataclass(frozen=True)
class Subject:
    """A person, how strongly they count, and when."""

    portrait: Portrait
    strength: float = 1.0
    """0 = the word as the base model knows it, 1 = as trained; more than 1 is no stronger router, and refused."""
    steps: tuple[float, float] = (0.0, 1.0)
    """From which share of the denoising steps to which: (0.4, 1) leaves the first 40 % to the prior."""

    def __post_init__(self) -> None:
        """Raises UserError for a strength or a range outside 0 … 1."""
        start, end = self.steps
        if not 0 <= self.strength <= 1:
            raise UserError(f"A subject's strength is from 0 to 1, not {self.strength}.")
        if not 0 <= start < end <= 1:
            raise UserError(f"A subject's steps are a range within 0 to 1, not {start} to {end}.")


RouterChoice: TypeAlias = Tensor | Sequence[RecordedStep]
"""A mask of R_1, 0 … 1, [H W] for all prompts or [P H W]; or the steps of a run under ``adapter.recording()``."""
SubjectLike: TypeAlias = Subject | Portrait
SubjectsByWord: TypeAlias = Mapping[str, SubjectLike | Sequence[SubjectLike | None]]
"""Word of the prompt → its subject; a list binds the word's first, second, … occurrence, None leaves one plain."""


@dataclass(frozen=True)
class Subjects:
    """Subjects for every row of a U-Net batch (training, or a bare U-Net)."""

    image_BSF: Float[Tensor, "B S F"]
    token_BS: Int[Tensor, "B S"]
    """Index of the word's last token, −1 for none."""
    maps: AttentionMaps | None = None
    share_B: Float[Tensor, " B"] | None = None
    """What a row's R_1 is multiplied by; 0 where it takes the prior alone. None = 1, also without any subject."""
    scale_BS: Float[Tensor, "B S"] | None = None
    """What the change of each subject's word is multiplied by; None = 1."""
    router: FixedRouter | None = None
    """Decides R_1 in place of the layers' own routers."""

    def for_batch(self, rows: int, timestep: float | None = None) -> "Subjects":
        """These subjects, if they are as many as the batch's rows; raises UserError otherwise."""
        if len(self.token_BS) != rows:
            raise UserError(f"Subjects are bound for {len(self.token_BS)} rows, but the U-Net's batch has {rows}.")
        return self

    def fixed_router(self, rows: int, timestep: float, latent_size: tuple[int, int]) -> FixedRouter | None:
        """The given one."""
        return self.router


@dataclass(frozen=True)
class Run:
    """What a binding asks of the pipeline call that is running."""

    guided: Callable[[], bool]
    """Whether it has an unconditional half: it comes first, without subjects, through the experts too."""
    progress: Callable[[float], float] = lambda timestep: 0.0
    """The share of its steps that lie before a timestep."""


@dataclass(frozen=True)
class Binding:
    """Subjects for every prompt of a pipeline call, whatever its guidance and number of images per prompt."""

    image_PSF: Float[Tensor, "P S F"]
    token_PS: Int[Tensor, "P S"]
    strength_PS: Float[Tensor, "P S"]
    steps_PS2: Float[Tensor, "P S 2"]
    run: Run
    router: RouterChoice | None = None

    def for_batch(self, rows: int, timestep: float | None = None) -> Subjects:
        """Repeat per image, put the unconditional half before; raises UserError if the prompts are not this many.

        A row's R_1 is scaled by its strongest subject, and the words of the others relative to that one: one subject
        at strength s blends prior and personalization, one of two at strength 0 is a plain word.
        """
        halves = 2 if self.run.guided() else 1
        images, rest = divmod(rows, halves * len(self.token_PS))
        if rest or not images:
            raise UserError(
                f"Subjects are bound to {len(self.token_PS)} prompts, but the U-Net's batch has {rows} rows: "
                "bind the same prompts that the pipeline is called with."
            )
        strength_PS = self.strength_PS * (self.token_PS >= 0)
        if timestep is not None:
            progress = self.run.progress(timestep)
            # In single precision, as the ranges are: 0.4 of the steps is reached at exactly 0.4.
            now = torch.tensor(progress, dtype=self.steps_PS2.dtype)
            strength_PS = strength_PS * ((self.steps_PS2[..., 0] <= now) & (now < self.steps_PS2[..., 1]))
        share_P = strength_PS.amax(dim=1)
        scale_PS = strength_PS / torch.where(share_P > 0, share_P, 1)[:, None]
        token_PS = self.token_PS.where(strength_PS > 0, -1)
        image_BSF, token_BS, scale_BS = (
            each.repeat_interleave(images, dim=0) for each in (self.image_PSF, token_PS, scale_PS)
        )
        share_B = share_P.repeat_interleave(images).repeat(halves)  # both halves of a prompt's guidance go the same way
        if halves == 2:
            image_BSF = torch.cat([torch.zeros_like(image_BSF), image_BSF])
            token_BS = torch.cat([torch.full_like(token_BS, -1), token_BS])
            scale_BS = torch.cat([torch.zeros_like(scale_BS), scale_BS])
        return Subjects(image_BSF, token_BS, share_B=share_B, scale_BS=scale_BS)

    def fixed_router(self, rows: int, timestep: float, latent_size: tuple[int, int]) -> FixedRouter | None:
        """The user's mask or recorded run, for the rows of this step. Raises UserError where they do not fit."""
        if self.router is None:
            return None
        if not isinstance(self.router, Tensor):
            return recorded_router(self.router, timestep, rows)
        halves = 2 if self.run.guided() else 1
        images = rows // (halves * len(self.token_PS))
        masks_PHW = self.router.expand(len(self.token_PS), *self.router.shape[-2:])
        return MaskRouter(masks_PHW.repeat_interleave(images, dim=0).repeat(halves, 1, 1), latent_size)


@dataclass(frozen=True)
class Spelling:
    """The prompts of a call, as one of the pipeline's tokenizers takes them."""

    tokenizer: Any
    prompts: Sequence[str]


def spellings(pipe: Any, prompts: Sequence[str]) -> list[Spelling]:
    """For each of the pipeline's tokenizers: one, or SDXL's two (of its refiner the second alone)."""
    tokenizers = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2")]
    return [
        Spelling(one, [pipe.maybe_convert_prompt(text, one) for text in prompts])
        for one in tokenizers
        if one is not None
    ]


def bind(
    spelled: Sequence[Spelling],
    subjects: Sequence[SubjectsByWord],
    encode: Callable[[Sequence[Image.Image]], Float[Tensor, "pictures F"]],
    image_dim: int,
    run: Run,
    router: RouterChoice | None = None,
) -> Binding:
    """Bind each prompt's subjects to its words.

    Raises UserError for a word that is not in its prompt, or repeats and has no list, or has another place for a second
    tokenizer, more subjects than occurrences, a feature of the wrong width or not finite, or a mask that is none.
    Warns, and leaves the subject out, where the prompt is cut before it.
    """
    prompts = spelled[0].prompts
    if isinstance(router, Tensor):
        _require_mask(router, len(prompts))
    if len(prompts) != len(subjects):
        raise UserError(f"{len(prompts)} prompts need as many mappings of subjects, not {len(subjects)}.")
    bound: list[list[tuple[int, Subject]]] = []
    for number, by_word in enumerate(subjects):
        bound.append(_bind_prompt(spelled[0].tokenizer, prompts[number], by_word))
        for other in spelled[1:]:
            _require_same_places(spelled[0], other, number, by_word)
    feature_of = _features([subject.portrait for row in bound for _, subject in row], encode, image_dim)
    width = max(1, *(len(row) for row in bound))
    image_PSF = torch.zeros(len(prompts), width, image_dim)
    token_PS = torch.full((len(prompts), width), -1, dtype=torch.long)
    strength_PS = torch.zeros(len(prompts), width)
    steps_PS2 = torch.zeros(len(prompts), width, 2)
    for p, row in enumerate(bound):
        for s, (token, subject) in enumerate(row):
            image_PSF[p, s], token_PS[p, s] = feature_of[id(subject.portrait)], token
            strength_PS[p, s], steps_PS2[p, s] = subject.strength, torch.tensor(subject.steps)
    return Binding(image_PSF, token_PS, strength_PS, steps_PS2, run, router)


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
    encoded = tokenizer(prompt, return_offsets_mapping=True, verbose=False)  # whole: a word may be cut in its middle
    start, end = span
    inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start and b > a]
    fits = inside and inside[-1] < tokenizer.model_max_length - 1  # the end token has the last place
    return inside[-1] if fits else None


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
        if len(spans) > 1 and not isinstance(given, (list, tuple)):
            raise UserError(
                f'The word "{word}" stands {len(spans)} times in the prompt "{prompt}": give it a list, with a subject '
                "or None for the first, the second, …"
            )
        for span, subject in zip(spans, chosen, strict=False):
            if subject is None:
                continue
            token = token_index(tokenizer, prompt, span)
            if token is None:
                lost = f'The prompt is too long: the subject of "{word}" is lost.'
                warnings.warn(lost, UserNotice, stacklevel=4)
            elif token in bound:
                raise UserError(
                    f'Two subjects for one place of the prompt: "{word}" at character {span[0]} of "{prompt}".'
                )
            else:
                bound[token] = subject if isinstance(subject, Subject) else Subject(subject)
    return sorted(bound.items(), key=lambda item: item[0])


def _require_same_places(one: Spelling, other: Spelling, number: int, words: Iterable[str]) -> None:
    """SDXL's text states stand side by side, so that a word has one place. The published tokenizers spell alike; a word
    that only one of them was taught (textual inversion) moves all that follow."""

    def places(spelled: Spelling, word: str) -> list[int | None]:
        prompt = spelled.prompts[number]
        return [token_index(spelled.tokenizer, prompt, span) for span in word_spans(prompt, word)]

    for word in words:
        if places(one, word) != places(other, word):
            raise UserError(
                f'The pipeline\'s two tokenizers have "{word}" at different places of the prompt: teach both of them '
                "the same new words."
            )


def _require_mask(mask: Tensor, prompts: int) -> None:
    if mask.ndim not in (2, 3) or (mask.ndim == 3 and len(mask) not in (1, prompts)):
        raise UserError(f"A router mask is [H W], or one for each of {prompts} prompts, not {list(mask.shape)}.")
    if not ((mask >= 0) & (mask <= 1)).all():  # also false for NaN
        raise UserError("A router mask has values from 0 (the prior) to 1 (the personalization expert).")


def _features(
    portraits: Sequence[Portrait], encode: Callable[[Sequence[Image.Image]], Tensor], image_dim: int
) -> dict[int, Float[Tensor, " F"]]:
    """Each distinct portrait's image feature by id(portrait)."""
    pictures = {id(portrait): portrait for portrait in portraits if isinstance(portrait, Image.Image)}
    features = {id(portrait): portrait for portrait in portraits if isinstance(portrait, Tensor)}
    if len(pictures) + len(features) != len({id(portrait) for portrait in portraits}):
        raise UserError("A subject is a PIL picture or an image feature (a tensor).")
    if pictures:
        features.update(zip(pictures, encode(list(pictures.values())), strict=True))
    for feature in features.values():
        if feature.shape != (image_dim,):
            raise UserError(
                f"This adapter takes image features of width {image_dim}, not of shape {tuple(feature.shape)}."
            )
        if not feature.isfinite().all():
            raise UserError("A subject's image feature is not finite: encode the picture again.")
    return features
