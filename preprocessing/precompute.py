"""What a training step would otherwise compute anew in each epoch: VAE moments, text states and subject features.

moments [2C, h, w]: the VAE's mean and log-variance, not multiplied by its scaling factor: a latent is drawn when
training. Made in single precision, whatever a training takes: SDXL's VAE overflows in float16.
text [L, D]: the text encoder's states of the caption, padded to the model's length; pooled [P]: SDXL's pooled text.
image_embeds [S, V, D]: CLIP's projected embedding of each subject's crops; variant 0 is the plain one.

Axes: B pictures, C latent channels, h w latent rows and columns, L prompt tokens, D width, S subjects, V variants.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, UInt8
from PIL import Image

from infra.model_files import resolve
from infra.settings import ModelReference, ShardSettings
from preprocessing.binding import Subject, Word, token_index
from preprocessing.text_encoding import TextEncoders, TextStates, half

_GREY = (127, 127, 127)
# One sentence has leanings of its own; the mean of several is the word's.
SENTENCES = ("a {}", "a photo of a {}") + tuple(
    f"a photo of a {{}} {place}"
    for place in ("on the beach", "in the forest", "in the city at night", "in the snow", "in a garden", "in a studio")
)
_BORDER = 0.1  # room around the subject's box, as a fraction of its longer side


def subject_crop(
    image: Image.Image,
    mask: Bool[np.ndarray, "height width"] | None,
    box: Sequence[float] | None,
    pixels: int,
    *,
    flip: bool = False,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Image.Image:
    """A subject as the image encoder sees it, when training and when drawing alike: pixels x pixels, RGB.

    The square around `box` [x1, y1, x2, y2] with some room, grey beyond the picture's edges; with a mask also grey
    wherever it is False. Without a box the mask's own box, and without either the whole picture, padded to a square.
    `zoom` > 1 cuts closer, `shift` moves the square by fractions of its side.
    """
    image = image.convert("RGB")
    border = _BORDER
    if mask is not None:
        if mask.shape != (image.height, image.width):
            raise ValueError(f"mask {mask.shape} does not fit a picture of {image.height} x {image.width}")
        stencil = Image.fromarray(mask.astype(np.uint8) * 255)
        image = Image.composite(image, Image.new("RGB", image.size, _GREY), stencil)
        if box is None and mask.any():
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    if box is None:
        box, border = (0, 0, image.width, image.height), 0.0
    x1, y1, x2, y2 = (float(value) for value in box)
    side = max(x2 - x1, y2 - y1, 1.0) * (1 + 2 * border) / zoom
    left = (x1 + x2 - side) / 2 + shift[0] * side
    top = (y1 + y2 - side) / 2 + shift[1] * side
    corners = (round(left), round(top), round(left + side), round(top + side))
    # Cut by pasting: Pillow's crop fills with black what lies outside, which CLIP would take for part of the picture.
    square = Image.new("RGB", (max(corners[2] - corners[0], 1), max(corners[3] - corners[1], 1)), _GREY)
    square.paste(image, (-corners[0], -corners[1]))
    if flip:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return square.resize((pixels, pixels), Image.Resampling.BICUBIC)


def subject_variants(
    image: Image.Image, mask: Bool[np.ndarray, "height width"], box: Sequence[float], settings: ShardSettings, seed: str
) -> list[Image.Image]:
    """`reference_variants` crops of one subject: even ones without the background, odd ones with it.

    Variant 0 is neither flipped nor moved; the others are, by a random stream that depends on `seed` alone. A subject
    that is always cut out the same way would be learned with its pose.
    """
    stream = random.Random(hashlib.sha256(seed.encode()).digest())
    crops = []
    for variant in range(settings.reference_variants):
        zoom, shift_x, shift_y = stream.uniform(0.9, 1.2), stream.uniform(-0.05, 0.05), stream.uniform(-0.05, 0.05)
        crops.append(
            subject_crop(
                image,
                mask if variant % 2 == 0 else None,
                box,
                settings.reference_pixels,
                flip=variant % 4 in (1, 2),
                zoom=zoom if variant else 1.0,
                shift=(shift_x, shift_y) if variant else (0.0, 0.0),
            )
        )
    return crops


def sample_crops(
    image: Image.Image,
    instances: UInt8[np.ndarray, "height width"],
    subjects: Sequence[Mapping[str, Any]],
    settings: ShardSettings,
    key: str,
) -> list[Image.Image]:
    """`subject_variants` of each of a sample's subjects in turn; the sample's key is the seed."""
    return [
        crop
        for number, subject in enumerate(subjects, start=1)
        for crop in subject_variants(image, instances == number, subject["box"], settings, f"{key} {number}")
    ]


class Precomputer:
    """The base model's VAE and text encoders and CLIP's towers; safetensors only.

    Each is loaded when it is first needed, once per process: a shard whose moments are there needs no VAE.
    """

    def __init__(self, base: ModelReference, clip: ModelReference, settings: ShardSettings) -> None:
        """UserError where a model's folder or revision cannot be used."""
        import infra.torchvision_ops  # noqa: F401  # before diffusers and transformers, which come with the models

        self.settings = settings
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._base, self._clip_place = resolve(base, "base"), resolve(clip, "clip")
        self._text = TextEncoders(base, self._device)

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
