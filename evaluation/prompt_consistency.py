"""Prompt consistency (PC): does the picture show what the prompt says? CLIP's cosine, scene and held-object accuracy.

The cosine (CLIPScore, Hessel et al., arXiv 2104.08718, without its factor 2.5 and its clamp) is the published number:
FastComposer (arXiv 2305.10431) and MoA (arXiv 2404.11565, app. D) take CLIP ViT-L/14's, of the bare prompt. It
moves little; which scene and which object a picture shows is what a person would look for. Both classifiers are CLIP's
own text embeddings, averaged over every way to say the rest of the sentence, so that "on the beach" is not confused
with "a man".

Pictures are scaled as FastComposer's code scales them: in floating point, antialiased, not rounded to grey levels.
transformers' processor, and so torchmetrics' CLIPScore, rounds: the same to 1e-5 where nothing is scaled, but not where
it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from infra.model_files import resolve, weights_needed
from infra.settings import ModelReference

NOTHING = ""


class PromptScorer:
    """CLIP with both towers. Every embedding that leaves this class is a unit vector."""

    def __init__(self, model: Any, processor: Any, device: str = "cpu") -> None:
        self._model = model.eval().to(device)
        self._processor = processor
        self._device = device

    @classmethod
    def open(cls, reference: ModelReference, device: str = "cpu", kind: str = "clip") -> "PromptScorer":
        """The CLIP that `models.clip`, or `models.{kind}`, names: a `CLIPModel` with its processor.

        UserError where its files are not to be had.
        """
        from transformers import CLIPModel, CLIPProcessor

        location, options = resolve(reference, kind)
        extra: dict[str, Any] = dict(options)
        with weights_needed(reference, kind):
            model = CLIPModel.from_pretrained(location, use_safetensors=True, **extra)
            processor = CLIPProcessor.from_pretrained(location, **extra)
        return cls(model, processor, device)

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image], batch_size: int = 32) -> Float[np.ndarray, "N D"]:
        """One unit vector per picture."""
        batches = []
        for start in range(0, len(pictures), batch_size):
            scaled = [self._scaled(picture) for picture in pictures[start : start + batch_size]]
            pixels = torch.stack(scaled).to(self._device)
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            batches.append(self._model.visual_projection(pooled))
        return _unit(batches)

    def _scaled(self, picture: Image.Image) -> Float[torch.Tensor, "3 H W"]:
        """What CLIP's image tower reads: shorter side and crop as its processor says, mean and deviation likewise."""
        from torchvision.transforms.v2 import functional as transforms

        about = self._processor.image_processor
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        bicubic = transforms.InterpolationMode.BICUBIC
        pixels = transforms.resize(pixels, [about.size["shortest_edge"]], interpolation=bicubic, antialias=True)
        pixels = transforms.center_crop(pixels, [about.crop_size["height"], about.crop_size["width"]])
        return transforms.normalize(pixels, about.image_mean, about.image_std)

    @torch.inference_mode()
    def texts(self, sentences: Sequence[str], batch_size: int = 64) -> Float[np.ndarray, "N D"]:
        """One unit vector per sentence; longer ones than the text tower reads are cut."""
        batches = []
        for start in range(0, len(sentences), batch_size):
            tokens = self._processor(
                text=list(sentences[start : start + batch_size]), padding=True, truncation=True, return_tensors="pt"
            ).to(self._device)
            pooled = self._model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            batches.append(self._model.text_projection(pooled))
        return _unit(batches)

    def classifier(self, sentences: Mapping[str, Sequence[str]]) -> "ZeroShot":
        """A classifier whose labels are described by several sentences each."""
        labels = list(sentences)
        rows = [self.texts(list(sentences[label])).mean(axis=0) for label in labels]
        weights_LD = np.stack(rows)
        return ZeroShot(labels, weights_LD / np.linalg.norm(weights_LD, axis=1, keepdims=True))


class ZeroShot:
    """CLIP as a classifier: the label whose mean sentence is nearest to the picture."""

    def __init__(self, labels: Sequence[str], weights_LD: Float[np.ndarray, "L D"]) -> None:
        self.labels = list(labels)
        self._weights_LD = weights_LD

    def __call__(self, images_ND: Float[np.ndarray, "N D"]) -> list[str]:
        return [self.labels[best] for best in (images_ND @ self._weights_LD.T).argmax(axis=1)]


def consistency(images_ND: Float[np.ndarray, "N D"], texts_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " N"]:
    """Cosine of picture i and prompt i, unscaled."""
    return (images_ND * texts_ND).sum(axis=1)


def scene_sentences(scenes: Sequence[str], objects: Sequence[str], words: Sequence[str]) -> dict[str, list[str]]:
    """For each scene every sentence about it: all words, all objects and empty hands."""
    held = _with_nothing(objects)
    return {scene: [_sentence(word, thing, scene) for word in words for thing in held] for scene in scenes}


def object_sentences(scenes: Sequence[str], objects: Sequence[str], words: Sequence[str]) -> dict[str, list[str]]:
    """For each object, and for `NOTHING` held, every sentence about it: all words, all scenes."""
    places = list(scenes) or [""]
    return {
        thing: [_sentence(word, thing, scene) for word in words for scene in places] for thing in _with_nothing(objects)
    }


def _with_nothing(objects: Sequence[str]) -> list[str]:
    return [*dict.fromkeys(thing for thing in objects if thing), NOTHING]


def _sentence(word: str, thing: str, scene: str) -> str:
    return " ".join(f"a photo of a {word} {'holding ' + thing if thing else ''} {scene}".split())


def _unit(batches: Sequence[torch.Tensor]) -> Float[np.ndarray, "N D"]:
    return torch.nn.functional.normalize(torch.cat(list(batches)).float(), dim=-1).cpu().numpy()
