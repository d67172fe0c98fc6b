"""What a training step would otherwise compute anew in each epoch: VAE moments, text states and subject features.

moments [2C, h, w]: the VAE's mean and log-variance, not multiplied by its scaling factor: a latent is drawn when
training. Made in single precision, whatever a training takes: SDXL's VAE overflows in float16.
text [L, D]: the text encoder's states of the caption, padded to the model's length; pooled [P]: SDXL's pooled text.
image_embeds [S, V, D]: CLIP's projected embedding of each subject's crops; variant 0 is the plain one.

Axes: B pictures, C latent channels, h w latent rows and columns, L prompt tokens, D width, S subjects, V variants.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16
from PIL import Image

from infra.model_files import resolve
from infra.settings import ModelReference, ShardSettings
from preprocessing.binding import Subject, Word, token_index
from preprocessing.text_encoding import TextEncoders, TextStates, half

# One sentence has leanings of its own; the mean of several is the word's.
SENTENCES = ("a {}", "a photo of a {}") + tuple(
    f"a photo of a {{}} {place}"
    for place in ("on the beach", "in the forest", "in the city at night", "in the snow", "in a garden", "in a studio")
)


class Precomputer:
    """The base model's VAE and text encoders and CLIP's towers; safetensors only.

    Each is loaded when it is first needed, once per process: a shard whose moments are there needs no VAE.
    """

    def __init__(
        self,
        base: ModelReference,
        clip: ModelReference,
        settings: ShardSettings,
        device: torch.device | str | None = None,
    ) -> None:
        """UserError where a model's folder or revision cannot be used.

        ``device``: None = a GPU if there is one. Name it where this process sees several, or hands this on to threads
        or processes: they do not know which GPU it has chosen.
        """
        import infra.torchvision_ops  # noqa: F401  # before diffusers and transformers, which come with the models

        self.settings = settings
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._base, self._clip_place = resolve(base, "base"), resolve(clip, "clip")
        self._text = TextEncoders(base, self._device)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without models, which it loads itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_vae", "_clip")}

    @property
    def tokenizer(self) -> Any:
        """The base model's; of SDXL's two, which agree, the first."""
        return self._text.tokenizers[0]

    @cached_property
    def _vae(self) -> Any:
        from diffusers import AutoencoderKL

        return self._ready(AutoencoderKL, self._base, subfolder="vae")

    @cached_property
    def _clip(self) -> Any:
        from transformers import CLIPModel

        return self._ready(CLIPModel, self._clip_place)

    @cached_property
    def _clip_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        where, arguments = self._clip_place
        return AutoTokenizer.from_pretrained(where, **arguments)

    @cached_property
    def _clip_images(self) -> Any:
        from transformers import AutoImageProcessor

        where, arguments = self._clip_place
        return AutoImageProcessor.from_pretrained(where, **arguments)

    @property
    def embed_width(self) -> int:
        """Width D of the subject features."""
        return int(self._clip.config.projection_dim)

    @torch.inference_mode()
    def moments(self, images: Sequence[Image.Image]) -> Float16[np.ndarray, "b c2 h w"]:
        """Mean and log-variance of the VAE's posterior, unscaled, of pictures of one size."""
        pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
        pixels_BCHW = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device) / 127.5 - 1
        return half(self._vae.encode(pixels_BCHW).latent_dist.parameters)

    @torch.inference_mode()
    def text(self, captions: Sequence[str]) -> TextStates:
        """The states of captions padded to the model's length, as a stock pipeline computes them."""
        return self._text.encode(list(captions))

    @torch.inference_mode()
    def empty_text(self) -> TextStates:
        """The text of a sample that is trained without its condition: a stock pipeline's unconditional half."""
        return self._text.empty()

    @torch.inference_mode()
    def image_embeds(self, crops: Sequence[Image.Image]) -> Float16[np.ndarray, "b d"]:
        """CLIP's projected image embeddings (`image_embeds` of CLIPVisionModelWithProjection), not normalised."""
        return half(self._project_images(crops))

    @torch.inference_mode()
    def word_scores(self, crops: Sequence[Image.Image], words: Sequence[Word]) -> Float[np.ndarray, "words people"]:
        """Cosine between each word, in several sentences, and each person's crop, for `binding.bind`."""
        names = list(dict.fromkeys(word.text.lower() for word in words))
        prompts = [sentence.format(name) for name in names for sentence in SENTENCES]
        tokens = self._clip_tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        text = self._clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        each = torch.nn.functional.normalize(self._clip.text_projection(text.pooler_output), dim=-1)
        text_embeds = torch.nn.functional.normalize(each.unflatten(0, (len(names), -1)).mean(1), dim=-1)
        image_embeds = torch.nn.functional.normalize(self._project_images(crops), dim=-1)
        scores: np.ndarray = (text_embeds @ image_embeds.T).float().cpu().numpy()
        return scores[[names.index(word.text.lower()) for word in words]]

    def token(self, caption: str, subject: Subject) -> int | None:
        """Place of the subject's word among the prompt's tokens; None where the prompt is cut before it."""
        return token_index(self.tokenizer, caption, (subject.start, subject.end))

    def _project_images(self, crops: Sequence[Image.Image]) -> Float[torch.Tensor, "b d"]:
        embeds = []
        for start in range(0, len(crops), self.settings.batch_size):
            batch = list(crops[start : start + self.settings.batch_size])
            pixels = self._clip_images(images=batch, return_tensors="pt")["pixel_values"].to(self._device)
            embeds.append(self._clip.visual_projection(self._clip.vision_model(pixel_values=pixels).pooler_output))
        return torch.cat(embeds)

    def _ready(self, model_class: Any, place: tuple[str, dict[str, str]], **options: str) -> Any:
        where, arguments = place
        model = model_class.from_pretrained(where, use_safetensors=True, **options, **arguments)
        return model.eval().requires_grad_(False).to(self._device)
