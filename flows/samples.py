"""Samples of the shards as people look at them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flows.run import Run
from preprocessing.catalog import load_shard
from preprocessing.shards import Sample, decode_instances, decode_picture, read_tar

_COLOURS = np.array([(235, 64, 52), (52, 120, 235), (52, 190, 90), (240, 180, 30)], np.float32)


@dataclass(frozen=True)
class Example:
    """A photo with what the stages found in it."""

    origin: str
    picture: Image.Image
    caption: str
    instances: UInt8[np.ndarray, "h w"]


def shown_people(photo: Sample, segmented: Sample) -> Image.Image:
    """The photo with each person in a tint of their own."""
    picture = decode_picture(photo.parts["jpg"])
    return tinted(picture, decode_instances(segmented.parts["instances.png"]))


def tinted(picture: Image.Image, instances_HW: UInt8[np.ndarray, "h w"]) -> Image.Image:
    """Each person of the map in a tint of their own."""
    pixels = np.asarray(picture.convert("RGB"), np.float32).copy()
    for number in range(1, int(instances_HW.max()) + 1):
        mask = instances_HW == number
        pixels[mask] = 0.55 * pixels[mask] + 0.45 * _COLOURS[(number - 1) % len(_COLOURS)]
    return Image.fromarray(pixels.astype(np.uint8))


def training_examples(run: Run, count: int) -> Sequence[Example]:
    """The first training samples, of all shards in turn."""
    rows = run.training_shards()[:4]
    examples: list[Example] = []
    for row in rows:
        for sample in list(read_tar(load_shard(run.store, row)))[: -(-count // len(rows))]:
            about = sample.json()
            examples.append(
                Example(
                    str(about.get("origin", sample.key)),
                    decode_picture(sample.parts["jpg"]),
                    str(about["caption"]),
                    decode_instances(sample.parts["instances.png"]),
                )
            )
    return examples[:count]
