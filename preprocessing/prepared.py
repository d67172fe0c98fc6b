"""Photos that come with caption, masks and binding: what a model would say is taken from their source instead.

`Prepared` is what the source says of the whole picture. Ingestion cuts it to the same square as the picture and keeps
it in the sample, "prepared" in its json and `instances.png` beside; caption, segment and shard then pass it through.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from preprocessing.photos import Crop, PhotoRefused, Reason
from preprocessing.shards import Sample, encode_instances

MASK_SOURCE = "source"


@dataclass(frozen=True)
class PreparedSubject:
    """Somebody in the picture: where its mask has the number `id`, named by caption[start:end]."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class Prepared:
    """A caption, and the map in which each of the subjects has its number; the map has the picture's size."""

    caption: str
    subjects: tuple[PreparedSubject, ...]
    ids: Int[np.ndarray, "h w"]

    def cropped(self, crop: Crop, size: tuple[int, int]) -> tuple[dict[str, Any], bytes]:
        """("prepared" of the sample's json, its instances.png), both in the square's pixels.

        size: (width, height) of the whole picture. People are numbered from left to right, as a segmenter's are; who
        is not in the square is nobody. Of two people with one word the larger has it. PhotoRefused where map and
        picture differ in size.
        """
        if self.ids.shape != (size[1], size[0]):
            height, width = self.ids.shape
            raise PhotoRefused(Reason.SIZE_MISMATCH, f"masks of {width} x {height}, a picture of {size[0]} x {size[1]}")
        # The nearest pixel's number, as Pillow's NEAREST takes it, but for any integers.
        steps = ((np.arange(crop.pixels) + 0.5) * crop.side / crop.pixels).astype(np.int64)
        ids = self.ids[np.ix_(crop.top + steps, crop.left + steps)]
        inside = [(subject, mask) for subject in self.subjects if (mask := ids == subject.id).any()]
        inside.sort(key=lambda pair: float(np.nonzero(pair[1])[1].mean()))
        instances = np.zeros(ids.shape, np.uint8)
        people, bound = list[dict[str, Any]](), dict[tuple[int, int], dict[str, Any]]()
        for number, (subject, mask) in enumerate(inside, start=1):
            instances[mask] = number
            rows, columns = np.nonzero(mask)
            box = [float(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
            area = round(float(mask.mean()), 6)
            people.append({"instance": number, "score": 1.0, "box": box, "area": area})
            word, place = self.caption[subject.start : subject.end], (subject.start, subject.end)
            if place not in bound or people[bound[place]["instance"] - 1]["area"] < area:
                bound[place] = {"instance": number, "word": word, "start": subject.start, "end": subject.end}
        about = {"caption": self.caption, "people": people, "binding": [bound[place] for place in sorted(bound)]}
        return about, encode_instances(instances)


def prepared_part(sample: Sample) -> Mapping[str, Any] | None:
    """What `Prepared.cropped` said of the sample when it was ingested; None for one that the models are to look at."""
    value = sample.json().get("prepared")
    return value if isinstance(value, dict) else None
