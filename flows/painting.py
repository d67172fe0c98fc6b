"""Drawing with a release: a stock pipeline of Stable Diffusion, the adapter on it, and subjects cut out of photos.

The same code draws the evaluation's cells, `moa generate`'s picture and the prior's.
"""

import io
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from PIL import Image

from evaluation.people import Found, Locate, people_from_instances
from evaluation.protocol import Cell, Drawing, Subject
from infra.errors import UserNotice
from infra.model_files import resolve
from infra.model_index import read_model_index
from infra.settings import ModelsSettings, Settings
from moa_model import ImageEncoder, MoAAdapter, RecordedStep, Scene
from moa_model.scene import keeping
from preprocessing.faces import FaceDetector
from preprocessing.segmentation import People, Segmenter, open_segmenter, people_from_faces
from preprocessing.subject_crops import subject_crop

# Prior's runs that a painter remembers: the demo's evaluation has 36; of SD 1.5 they are 3 MB each, of SDXL 13.
_SCENES = 64
_ENCODERS = ("text_encoder", "text_encoder_2")  # of SDXL two


class Painter:
    """Pipeline, adapter and segmenter of one set of settings."""

    def __init__(self, settings: Settings, pipe: Any, adapter: MoAAdapter | None, segmenter: Segmenter | None) -> None:
        self.settings, self.pipe, self.adapter, self.segmenter = settings, pipe, adapter, segmenter
        self._scenes: dict[tuple[str, int], Scene] = {}  # of one picture each, by prompt and seed

    @classmethod
    def open(cls, settings: Settings, adapter: Mapping[str, bytes] | Path | None) -> Self:
        """Load everything; `adapter` is a folder, an adapter's files by name, or None for the prior alone."""
        pipe = open_pipeline(settings.models)
        loaded = None if adapter is None else _attached(adapter, pipe, settings)
        return cls(settings, pipe, loaded, open_segmenter(settings.models.segmenter, settings.segment))

    def crop(self, photo: Image.Image, name: str = "the photo") -> Image.Image:
        """The subject of a photo as the adapter was trained to see it: cut out of its background.

        The largest person; where the segmenter sees nobody, the region around the largest face; else the whole photo,
        with a warning that calls it by `name`.
        """
        people = self._people(photo)
        pixels = self.settings.shard.reference_pixels
        if not people.people:
            warnings.warn(f"Nobody was found in {name}: the whole of it stands for the person.", UserNotice, 2)
            return subject_crop(photo, None, None, pixels)
        largest = max(people.people, key=lambda person: person.area)
        return subject_crop(photo, people.instances == largest.instance, largest.box, pixels)

    def everybody(self, photo: Image.Image) -> list[tuple[Image.Image, np.ndarray]]:
        """Everybody in a photo from left to right, as `crop` cuts them and where: (crop, bool [height, width])."""
        people, pixels = self._people(photo), self.settings.shard.reference_pixels
        ordered = sorted(people.people, key=lambda person: person.box[0] + person.box[2])
        masks = [people.instances == one.instance for one in ordered]
        return [(subject_crop(photo, mask, one.box, pixels), mask) for one, mask in zip(ordered, masks, strict=True)]

    @property
    def call(self) -> dict[str, Any]:
        """What every call of the pipeline takes from the settings."""
        options, side = self.settings.evaluate, self.settings.ingest.pixels
        return {
            "num_inference_steps": options.inference_steps,
            "guidance_scale": options.guidance_scale,
            "height": side,
            "width": side,
        }

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Any]], seeds: Sequence[int], **more: Any
    ) -> list[Drawing]:
        """One picture per prompt; `subjects` maps its words to crops, an empty mapping is the prior alone.

        Each picture's noise comes from its own seed: what else is in the batch does not matter. `more` goes on to the
        pipeline, as a ControlNet's `image`.
        """
        call = {**self.call_for(prompts, seeds), **more}
        if not any(subjects):
            return [Drawing(image) for image in self.pipe(**call).images]
        assert self.adapter is not None, "subjects need an adapter"
        bound = self.adapter.bind(self.pipe, list(prompts), list(subjects))
        scene = self.scenes(prompts, seeds, **more) if self.settings.evaluate.keep_scene else None
        with self.adapter.recording(subject_maps=False) as steps, keeping(scene, self.adapter) as keep:
            images = self.pipe(**call, **keep, cross_attention_kwargs=bound).images
        maps = _router_maps(steps, len(prompts))
        return [
            Drawing(image, None if maps is None or not cast else maps[row])
            for row, (image, cast) in enumerate(zip(images, subjects, strict=True))
        ]

    def scene(self, prompt: str, seed: int) -> Scene | None:
        """The prior's run for `moa_model.applications` to keep to; None where the settings keep none."""
        return self.scenes([prompt], [seed]) if self.settings.evaluate.keep_scene else None

    def scenes(self, prompts: Sequence[str], seeds: Sequence[int], **more: Any) -> Scene:
        """The prior's runs of a batch. One serves every subject, so it is remembered, if nothing else decides it.

        Each is drawn by itself: in a batch its last digits would depend on what else was missing just then.
        """
        parts = [self.pipe.unet, *(getattr(self.pipe, name, None) for name in _ENCODERS)]
        if more or any(getattr(part, "peft_config", None) for part in parts):  # LoRA
            return Scene.drawn(self.pipe, **self.call_for(prompts, seeds), **more)
        asked = list(zip(prompts, seeds, strict=True))
        for prompt, seed in dict.fromkeys(asked):
            if (prompt, seed) not in self._scenes:
                self._scenes[prompt, seed] = Scene.drawn(self.pipe, **self.call_for([prompt], [seed]))
        batch = Scene.batch([self._scenes[one] for one in asked])
        for one in list(self._scenes)[:-_SCENES]:
            del self._scenes[one]
        return batch

    def call_for(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """What a call of the pipeline takes to draw these: each picture's noise is its own seed's."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return {"prompt": list(prompts), "generator": generators, **self.call}

    def _people(self, photo: Image.Image) -> People:
        assert self.segmenter is not None, "photos need a segmenter"
        people = self.segmenter.segment([photo])[0]
        if not people.people and self.settings.segment.face_fallback:
            people = _people_of_faces(photo)
        return people


def open_pipeline(models: ModelsSettings, device: torch.device | str | None = None, **parts: Any) -> Any:
    """The base model as the stock pipeline that its index calls for; safetensors only.

    A safety checker would blacken what is measured, and a watermark would be measured: neither. `device`: None = a GPU
    where there is one. `parts`: those of the pipeline that are there already, as `unet`.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UniPCMultistepScheduler
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where, options = resolve(models.base, "base")
    pipe: Any
    if read_model_index(models.base).two_encoders:
        # The published text encoders' configurations say float16, and all else would be float32 beside them.
        extra: dict[str, Any] = {"add_watermarker": False, "dtype": torch.float32, **options, **parts}
        pipe = StableDiffusionXLPipeline.from_pretrained(where, use_safetensors=True, **extra)
    else:
        extra = {"safety_checker": None, "requires_safety_checker": False, **options, **parts}
        pipe = StableDiffusionPipeline.from_pretrained(where, use_safetensors=True, **extra)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def open_image_encoder(models: ModelsSettings) -> ImageEncoder:
    """CLIP's image tower, with the bare name of its model."""
    where, options = resolve(models.clip, "clip")
    return ImageEncoder.load(where, **options)


def locate_people(segmenter: Segmenter) -> Locate:
    """The segmenter as the evaluation asks for it: people with masks, the largest first."""

    def locate(pictures: Sequence[Image.Image]) -> Sequence[Sequence[Found]]:
        return [people_from_instances(people.instances) for people in segmenter.segment(pictures)]

    return locate


def to_png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes) -> Image.Image:
    """The RGB picture in a PNG file of our own."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return image.convert("RGB")


def as_drawings(drawn: Sequence[tuple[Cell, bytes, Any]]) -> dict[Cell, Drawing]:
    """What painters sent, as the evaluation takes it."""
    return {cell: Drawing(from_png(png), router) for cell, png, router in drawn}


def as_subjects(people: Sequence[Mapping[str, Any]]) -> list[Subject]:
    """{"name", "word", "photos": [PNG], "original": PNG} as subjects; the first photo is the reference."""
    subjects = []
    for one in people:
        reference, *others = map(from_png, one["photos"])
        subjects.append(Subject(one["name"], one["word"], reference, tuple(others), from_png(one["original"])))
    return subjects


def _attached(adapter: Mapping[str, bytes] | Path, pipe: Any, settings: Settings) -> MoAAdapter:
    if isinstance(adapter, Path):
        loaded = MoAAdapter.from_pretrained(adapter)
    else:
        with tempfile.TemporaryDirectory(prefix="moa-adapter-") as folder:
            for name in ("adapter.safetensors", "adapter_config.json"):
                Path(folder, name).write_bytes(adapter[name])
            loaded = MoAAdapter.from_pretrained(Path(folder))
    loaded.prior_only_above = settings.evaluate.prior_only_above  # not what it was made with
    return loaded.attach(pipe, image_encoder=open_image_encoder(settings.models))


def _router_maps(steps: Sequence[RecordedStep], count: int) -> np.ndarray | None:
    """Weight of the personalization expert per picture, mean over steps and layers.

    The pictures are the last `count` rows of the batch: the unconditional half comes first.
    """
    if not steps:
        return None
    mean = torch.stack([step.mean_router()[-count:] for step in steps]).mean(0)
    return (1 - mean.float()).cpu().numpy().astype(np.float16)


def _people_of_faces(photo: Image.Image) -> People:
    faces = FaceDetector().detect(photo)[:1]
    return people_from_faces([face.as_json() for face in faces], (photo.height, photo.width))
