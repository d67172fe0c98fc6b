"""Photos to captions, by a BLIP-2-class model."""

import base64
import io
import json
import os
import subprocess
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from infra.errors import UserError
from infra.model_files import resolve
from infra.settings import CaptionSettings, ModelReference

LAVIS_PYTHON = "MOA_LAVIS_PYTHON"
_KEPT = "\t\n\v\f\r\u0085\u200c\u200d"


class Captioner(Protocol):
    """What the caption stage needs of a model."""

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
        # 2.7 billion weights in half precision fit beside others on a GPU; a CPU computes in full precision anyway.
        self._dtype = torch.float16 if self._device == "cuda" else torch.float32
        model: Any = Blip2ForConditionalGeneration.from_pretrained(
            where, use_safetensors=True, dtype=self._dtype, **arguments
        )
        self._model = model.eval().to(self._device)

    @torch.inference_mode()
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        captions: list[str] = []
        for start in range(0, len(images), self._settings.batch_size):
            batch = list(images[start : start + self._settings.batch_size])
            pixels = self._processor(images=batch, return_tensors="pt")["pixel_values"]
            # No sampling: the same pictures must give the same captions. No prompt: BLIP-2 then simply describes.
            tokens = self._model.generate(
                pixel_values=pixels.to(self._device, self._dtype),
                max_new_tokens=self._settings.max_new_tokens,
                num_beams=self._settings.num_beams,
                do_sample=False,
            )
            captions += self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [one_line(caption) for caption in captions]


class LavisCaptioner:
    """BLIP-2 by LAVIS, `reference.location` = "NAME/TYPE" as in "blip2_opt/caption_coco_opt6.7b".

    LAVIS pins a transformers of 2023, so it runs in an interpreter of its own, named by MOA_LAVIS_PYTHON; pictures go
    there and captions come back as lines of JSON. The checkpoints that it unpickles therefore never enter this process.
    `reference.revision` is the commit of the LAVIS that is installed there.
    """

    def __init__(self, reference: ModelReference, settings: CaptionSettings) -> None:
        interpreter = os.environ.get(LAVIS_PYTHON, "")
        if not Path(interpreter).is_file():
            raise UserError(
                "The LAVIS captioner needs a Python 3.10 of its own: `python3.10 -m venv lavis`, "
                f"`lavis/bin/pip install salesforce-lavis`, then set {LAVIS_PYTHON} to lavis/bin/python; "
                "or choose the backend 'transformers'."
            )
        name, separator, model_type = reference.location.partition("/")
        if not separator:
            raise UserError(
                f"A LAVIS captioner is named NAME/TYPE, not {reference.location!r}: "
                "such as blip2_opt/caption_coco_opt6.7b."
            )
        self._settings = settings
        worker = Path(__file__).with_name("lavis_worker.py")
        self._process = subprocess.Popen(
            [interpreter, str(worker), name, model_type], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        captions: list[str] = []
        for start in range(0, len(images), self._settings.batch_size):
            batch = images[start : start + self._settings.batch_size]
            request = {
                "images": [base64.b64encode(_png(image)).decode() for image in batch],
                "num_beams": self._settings.num_beams,
                "max_length": self._settings.max_new_tokens,
            }
            captions += self._ask(request)["captions"]
        return [one_line(caption) for caption in captions]

    def close(self) -> None:
        """End the second interpreter."""
        if self._process.stdin is not None:
            self._process.stdin.close()  # its loop ends with its input
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"The LAVIS interpreter ended (exit {self._process.wait()}): its own message is above.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"LAVIS: {answer['error']}")
        return answer


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


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
