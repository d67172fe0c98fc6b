"""Captions as a stock pipeline hands them to its U-Net: states for the cross-attention and, for SDXL, a pooled text.

Axes: B captions, L prompt tokens, D width of the states, P width of the pooled text.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

from infra.errors import UserError
from infra.model_files import resolve
from infra.model_index import ModelIndex, read_model_index
from infra.settings import ModelReference


@dataclass(frozen=True)
class TextStates:
    """What a base's text encoders make of some captions, in half precision."""

    states: Float16[np.ndarray, "b l d"]
    """Of one encoder its last hidden states; of SDXL's two the last but one, side by side."""
    pooled: Float16[np.ndarray, "b p"] | None = None
    """SDXL's: the second encoder's projected end token. None for the others."""


class TextEncoders:
    """A base's tokenizers and text encoders, each loaded when it is first needed; safetensors only."""

    def __init__(self, base: ModelReference, device: torch.device | str) -> None:
        """UserError where the base's folder or revision cannot be used."""
        self._base, self._device, self._place = base, torch.device(device), resolve(base, "base")

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without models, which it loads itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_encoders"}

    @cached_property
    def index(self) -> ModelIndex:
        """How many there are, and what an empty prompt is. Raises UserError as `read_model_index` says."""
        return read_model_index(self._base)

    @cached_property
    def tokenizers(self) -> list[Any]:
        """One or two; a word's place among the tokens is the same for both. Raises UserError where it would not be."""
        from transformers import AutoTokenizer

        where, arguments = self._place
        names = ["tokenizer", "tokenizer_2"][: 1 + self.index.two_encoders]
        loaded = [AutoTokenizer.from_pretrained(where, subfolder=name, **arguments) for name in names]
        if any(one.get_vocab() != loaded[0].get_vocab() for one in loaded[1:]):
            raise UserError(
                f"The two tokenizers of the base at {where} have different vocabularies, so that a word would stand at "
                "two places: take a base whose tokenizers are the same, as the published SDXL's are."
            )
        return loaded

    def encode(self, captions: list[str]) -> TextStates:
        """Captions padded to the model's length, as `encode_prompt` of the stock pipelines computes them."""
        if not self.index.two_encoders:
            return TextStates(half(self._one(captions)))
        made = [
            encoder(self._tokens(tokenizer, captions)["input_ids"].to(self._device), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self._encoders, strict=True)
        ]
        return TextStates(half(torch.cat([one.hidden_states[-2] for one in made], dim=-1)), half(made[-1].text_embeds))

    def empty(self) -> TextStates:
        """The text of a sample that is trained without its condition, B = 1: what is drawn with has the same one."""
        if not self.index.empty_is_zero:
            return self.encode([""])
        first, second = self._configurations
        width = first.hidden_size + second.hidden_size
        length = self.tokenizers[0].model_max_length
        return TextStates(np.zeros((1, length, width), np.float16), np.zeros((1, second.projection_dim), np.float16))

    def _one(self, captions: list[str]) -> Tensor:
        (encoder,), (tokenizer,) = self._encoders, self.tokenizers
        tokens = self._tokens(tokenizer, captions)
        # No attention mask: Stable Diffusion attends to the padding too (unless the encoder's configuration asks for
        # one).
        mask = tokens["attention_mask"] if getattr(encoder.config, "use_attention_mask", False) else None
        return encoder(
            tokens["input_ids"].to(self._device), attention_mask=None if mask is None else mask.to(self._device)
        ).last_hidden_state

    def _tokens(self, tokenizer: Any, captions: list[str]) -> Any:
        length = tokenizer.model_max_length
        return tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")

    @cached_property
    def _encoders(self) -> list[Any]:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        where, arguments = self._place
        classes, options = {"text_encoder": CLIPTextModel}, dict[str, Any](arguments)
        if self.index.two_encoders:
            classes["text_encoder_2"] = CLIPTextModelWithProjection
            # The published configurations say float16, which transformers would take; the weights are float32.
            options["dtype"] = torch.float32
        loaded = [
            one.from_pretrained(where, subfolder=name, use_safetensors=True, **options) for name, one in classes.items()
        ]
        return [model.eval().requires_grad_(False).to(self._device) for model in loaded]

    @cached_property
    def _configurations(self) -> list[Any]:
        """Of SDXL's two encoders: zeros need their widths and not their three gigabytes."""
        from transformers import CLIPTextConfig

        where, arguments = self._place
        names = ("text_encoder", "text_encoder_2")
        return [CLIPTextConfig.from_pretrained(where, subfolder=name, **arguments) for name in names]


def half(tensor: Tensor) -> np.ndarray:
    """Half precision on the CPU; what overflows there would poison a training step much later, so it fails here."""
    array: np.ndarray = tensor.to(torch.float16).cpu().numpy()
    if not np.isfinite(array).all():
        raise ValueError("a feature is not finite in half precision")
    return array
