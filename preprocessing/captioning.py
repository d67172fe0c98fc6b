"""Photos to captions, by a BLIP-2-class model."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from infra.errors import UserError
from infra.model_files import resolve
from infra.settings import CaptionSettings, ModelReference
from preprocessing.batching import Steps, in_batches
from preprocessing.lavis import LavisCaptioner

_KEPT = "\t\n\v\f\r\u0085\u200c\u200d"


class Captioner(Protocol):
    """What the caption stage needs of a model."""

    @property
    def steps(self) -> Steps[Image.Image, str]:
        """What the model says of one batch, as it says it, in the three steps that run beside one another."""
        ...

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One line per RGB picture, without special tokens; "" where the model says nothing."""
        ...


def open_captioner(reference: ModelReference, settings: CaptionSettings) -> Captioner:
    """Load the model that `reference.backend` names; UserError for an unknown one."""
    if reference.backend not in CAPTIONERS:
        raise UserError(f"Unknown captioner backend {reference.backend!r}: choose one of {', '.join(CAPTIONERS)}.")
    return CAPTIONERS[reference.backend](reference, settings)


class TransformersCaptioner:
    """`Blip2ForConditionalGeneration` and `Blip2Processor` from a folder or the hub, safetensors only."""

    def __init__(self, reference: ModelReference, settings: CaptionSettings) -> None:
        import infra.torchvision_ops  # noqa: F401, I001  # before transformers
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        where, arguments = resolve(reference, "captioner")
        self._settings = settings
        self._processor: Any = Blip2Processor.from_pretrained(where, **arguments)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # Half the memory on a GPU, and bfloat16 does not overflow where float16 may; a CPU gains nothing from it.
        self._dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        model: Any = Blip2ForConditionalGeneration.from_pretrained(
            where, use_safetensors=True, dtype=self._dtype, **arguments
        )
        self._model = model.eval().to(self._device)

    @property
    def steps(self) -> Steps[Image.Image, str]:
        return Steps(self._run, self._collate, self._read)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [one_line(text) for text in in_batches(self.steps, images, self._settings.batch_size)]

    def _collate(self, images: list[Image.Image]) -> Tensor:
        pixels: Tensor = self._processor(images=images, return_tensors="pt")["pixel_values"]
        return pixels.to(self._device, self._dtype)

    @torch.inference_mode()
    def _run(self, pixels_BCHW: Tensor) -> Tensor:
        # No sampling: the same pictures must give the same captions. No prompt: BLIP-2 then simply describes.
        tokens: Tensor = self._model.generate(
            pixel_values=pixels_BCHW,
            max_new_tokens=self._settings.max_new_tokens,
            num_beams=self._settings.num_beams,
            do_sample=False,
        )
        return tokens

    def _read(self, _: list[Image.Image], tokens: Tensor) -> list[str]:
        texts: list[str] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return texts


CAPTIONERS: dict[str, Callable[[ModelReference, CaptionSettings], Captioner]] = {
    "transformers": TransformersCaptioner,
    "lavis": LavisCaptioner,
}


def one_line(text: str) -> str:
    """Single spaces, no line breaks, nothing at the ends, nothing that does not show.

    Control characters, marks that turn the direction of text around, half characters and unassigned ones go; what joins
    letters and emoji (U+200C, U+200D) stays.

    >>> one_line("a\x00 man\u202e on\tthe beach")
    'a man on the beach'
    """
    if not isinstance(text, str):
        raise TypeError(f"a caption is text, not {type(text).__name__}")
    shown = (" " if letter.isspace() else letter for letter in text if letter in _KEPT or _shows(letter))
    return " ".join("".join(shown).split())


def _shows(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn")
