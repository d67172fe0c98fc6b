"""Scores of the demo's models on held-out Paperfolk, by the code that production runs them with."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from PIL import Image

from evaluation.identity import crop_person, open_identity_encoder
from evaluation.measures import roc_auc
from evaluation.people import people_from_instances
from evaluation.prompt_consistency import PromptScorer, object_sentences, scene_sentences
from flows.artifacts import console, contact_sheet
from flows.painting import open_pipeline
from flows.truth import person_overlaps
from flows.zoo import HELD_OUT, HELD_OUT_PAIRS, Workshop
from flows.zoo_guides import score_controlnet, score_style
from infra.settings import Settings, load_settings
from infra.zoo.pictures import LabelledPictures, to_tensor
from preprocessing.captioning import open_captioner
from preprocessing.segmentation import open_segmenter
from preprocessing.sources.paperfolk_world import OBJECTS, SCENES

Scores = dict[str, dict[str, float]]
WORDS = ("man", "woman")
THINGS = [thing for thing in OBJECTS.values() if thing]
PLACES = list(SCENES.values())
_STEPS, _GUIDANCE, _BATCH = 15, 3.0, 24
_BEGIN, _END = "<!-- scores: written by moa zoo score -->", "<!-- end of scores -->"


def score_zoo(shop: Workshop, weights: Path) -> tuple[Scores, list[Image.Image]]:
    """Every model that is in `weights`: (scores by model, the base's samples)."""
    names = ("base", "clip", "captioner", "segmenter", "identity")
    overrides = {f"models.{name}.location": str(weights / name) for name in names}
    settings = load_settings("demo", shop.root, overrides)
    there = {name for name in names if (weights / name).is_dir()}
    pictures = shop.load(HELD_OUT)
    scores: Scores = {}
    scorers: dict[str, Callable[[], dict[str, float]]] = {
        "captioner": lambda: _captioner(settings, pictures),
        "segmenter": lambda: _segmenter(settings, pictures),
        "identity": lambda: _identity(settings, shop.load(HELD_OUT_PAIRS)),
        "clip": lambda: _clip(settings, pictures),
    }
    for name, scorer in scorers.items():
        if name in there:
            with console.status(f"scoring {name}"):
                scores[name] = scorer()
            console.print(f"{name}: {scores[name]}")
    samples: list[Image.Image] = []
    if {"base", "clip"} <= there:
        with console.status("drawing with the base"):
            scores["base"], samples = _base(settings, pictures, {"captioner", "segmenter"} & there)
        console.print(f"base: {scores['base']}")
    if "base" in there:
        count = max(8, round(96 * shop.share))
        guides: dict[str, Callable[..., dict[str, float]]] = {"controlnet": score_controlnet, "style-lora": score_style}
        for name, scorer_of_guide in guides.items():
            if (weights / name).is_dir():
                with console.status(f"drawing with {name}"):
                    scores[name] = scorer_of_guide(settings, weights / name, HELD_OUT[1], count)
                console.print(f"{name}: {scores[name]}")
    return scores, samples


def write_scores(scores: Scores, samples: Sequence[Image.Image], weights: Path) -> list[Path]:
    """scores.json and base-samples.png into `weights`, and the table into the README beside it."""
    path = weights / "scores.json"
    path.write_text(json.dumps(scores, indent=2) + "\n", "utf-8")
    written = [path]
    if samples:
        written.append(weights / "base-samples.png")
        contact_sheet(samples, columns=12, side=96).save(written[-1], optimize=True)
    readme = weights.parent / "README.md"
    if readme.is_file():
        before, _, rest = readme.read_text("utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        readme.write_text(f"{before}{_BEGIN}\n{table(scores, weights)}\n{_END}{after}", "utf-8")
        written.append(readme)
    return written


def table(scores: Scores, weights: Path) -> str:
    """The scores as Markdown: a row per figure, with the command that makes the model."""
    lines = ["| model | held-out Paperfolk | score | made by |", "| --- | --- | --- | --- |"]
    for name in sorted(scores):
        size = sum(path.stat().st_size for path in (weights / name).rglob("*") if path.is_file()) / 1e6
        about = f"`{name}` ({size:.1f} MB)"
        made = f"`moa zoo train {name.removesuffix('-lora')}`"
        for figure, value in scores[name].items():
            shown = f"{value:.1f} dB" if "PSNR" in figure else f"{value:.3f}"
            lines.append(f"| {about} | {figure} | {shown} | {made} |")
            about = made = ""
    return "\n".join(lines)


def _images(pictures: LabelledPictures) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in pictures.pixels]


def _share(right: Sequence[bool]) -> float:
    return round(float(np.mean(right)), 4)


def _captioner(settings: Settings, pictures: LabelledPictures) -> dict[str, float]:
    said = open_captioner(settings.models.captioner, settings.caption).caption(_images(pictures))
    return {"caption exact match": _share([a == b for a, b in zip(said, pictures.captions, strict=True)])}


def _segmenter(settings: Settings, pictures: LabelledPictures) -> dict[str, float]:
    found = open_segmenter(settings.models.segmenter, settings.segment).segment(_images(pictures))
    overlaps = [
        overlap
        for wanted, people in zip(pictures.instances, found, strict=True)
        for overlap in person_overlaps(wanted, people.instances)
    ]
    counted = [len(people.people) == wanted.max() for wanted, people in zip(pictures.instances, found, strict=True)]
    return {
        "mask IoU (mean over people)": round(float(np.mean(overlaps)), 4),
        "right number of people": _share(counted),
    }


def _identity(settings: Settings, pairs: LabelledPictures) -> dict[str, float]:
    """Pictures 2i and 2i+1 show one person: all pairs across, the same person against everybody else."""
    encoder = open_identity_encoder(settings.models.identity)
    crops = [
        crop_person(image, people_from_instances(instances)[0], encoder.crop)
        for image, instances in zip(_images(pairs), pairs.instances, strict=True)
    ]
    vectors_ND = np.concatenate([encoder.embed(crops[start : start + 64]) for start in range(0, len(crops), 64)])
    similarity = vectors_ND[::2] @ vectors_ND[1::2].T
    same = np.eye(len(similarity), dtype=bool)
    auc = roc_auc(similarity.ravel(), same.ravel())
    assert auc is not None
    return {
        "identity verification ROC-AUC": round(auc, 5),
        "similarity, same person": round(float(similarity[same].mean()), 4),
        "similarity, somebody else": round(float(similarity[~same].mean()), 4),
    }


class _Judge:
    """What CLIP sees in a picture of one person, without training: scene, held object, man or woman."""

    def __init__(self, settings: Settings) -> None:
        self.scorer = PromptScorer.open(settings.models.clip)
        by_word = {word: sum(scene_sentences(PLACES, THINGS, [word]).values(), []) for word in WORDS}
        self.classifiers = {
            "scene": self.scorer.classifier(scene_sentences(PLACES, THINGS, WORDS)),
            "held object": self.scorer.classifier(object_sentences(PLACES, THINGS, WORDS)),
            "man or woman": self.scorer.classifier(by_word),
        }

    def accuracy(self, images: Sequence[Image.Image], truth: Sequence[tuple[str, str, str]]) -> dict[str, float]:
        """`truth` per picture: (scene, object or "", word)."""
        vectors_ND = self.scorer.images(images)
        columns = zip(*truth, strict=True)
        return {
            f"{name} accuracy": _share([a == b for a, b in zip(classify(vectors_ND), column, strict=True)])
            for (name, classify), column in zip(self.classifiers.items(), columns, strict=True)
        }


def _single(caption: str) -> tuple[str, str, str] | None:
    """(scene, object or "", word) of a caption about one person."""
    for place, thing, word in product(PLACES, ["", *THINGS], WORDS):
        if caption == _prompt(word, thing, place):
            return place, thing, word
    return None


def _prompt(word: str, thing: str, place: str) -> str:
    return f"a photo of a {word}{' holding ' + thing if thing else ''} {place}"


def _clip(settings: Settings, pictures: LabelledPictures) -> dict[str, float]:
    truths = [_single(caption) for caption in pictures.captions]
    shown = [(image, truth) for image, truth in zip(_images(pictures), truths, strict=True) if truth is not None]
    accuracy = _Judge(settings).accuracy([image for image, _ in shown], [truth for _, truth in shown])
    return {f"zero-shot {name}": value for name, value in accuracy.items()}


@torch.inference_mode()
def _base(
    settings: Settings, pictures: LabelledPictures, others: set[str]
) -> tuple[dict[str, float], list[Image.Image]]:
    """Its autoencoder on held-out pictures, and 96 samples: every scene, word and object, and bare hands twice."""
    pipe = open_pipeline(settings.models)
    error, count = 0.0, 0
    for start in range(0, min(256, len(pictures)), 32):
        x = to_tensor(pictures.pixels[start : start + 32])
        restored = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        error, count = error + float((restored - x).square().sum()), count + x.numel()
    scores = {"autoencoder PSNR": round(10 * math.log10(4 * count / error), 2)}

    wanted = list(product(PLACES, [*THINGS, "", ""], WORDS))
    images: list[Image.Image] = []
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        call: dict[str, Any] = {
            "prompt": [_prompt(word, thing, place) for place, thing, word in batch],
            "num_inference_steps": _STEPS,
            "guidance_scale": _GUIDANCE,
            "generator": [torch.Generator().manual_seed(start + row) for row in range(len(batch))],
        }
        images += pipe(**call, height=settings.ingest.pixels, width=settings.ingest.pixels).images
    for name, value in _Judge(settings).accuracy(images, wanted).items():
        scores[f"samples: {name}"] = value
    if "segmenter" in others:
        found = open_segmenter(settings.models.segmenter, settings.segment).segment(images)
        scores["samples: one person found"] = _share([len(people.people) == 1 for people in found])
    if "captioner" in others:
        said = open_captioner(settings.models.captioner, settings.caption).caption(images)
        prompts = [_prompt(word, thing, place) for place, thing, word in wanted]
        scores["samples: captioner reads the prompt back"] = _share(
            [a == b for a, b in zip(said, prompts, strict=True)]
        )
    return scores, images
