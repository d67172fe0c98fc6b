"""The costly parts of a training sample, one shard of arrays each: computed once and joined by `stages.build_shard`.

A column depends on less than the sample does, and has a fingerprint of its own: other crops of the subjects leave the
VAE's moments as they are, another caption leaves both. What each reads:

    moments       ingest's pictures, the base's VAE
    text          the bound captions, the base's text encoders; SDXL's pooled text comes with its states
    image_embeds  ingest's pictures, the bound subjects, CLIP's image tower, the reference settings

A batch is cut from the photos in their order, so the same input shards give the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from infra.settings import ShardSettings
from preprocessing.augmentation import sample_crops
from preprocessing.batching import Steps, one_bad_apple
from preprocessing.precompute import Precomputer
from preprocessing.shards import Sample, decode_instances, encode_npy, read_tar, write_tar
from preprocessing.stages import failed, picture_of

_Arrays = Mapping[str, np.ndarray]  # of one sample, by the name of its file


def moments_column(ingest: bytes, bound: bytes, precomputer: Precomputer, settings: ShardSettings) -> bytes:
    """Every ingested photo, bound or not: who is named in it does not change its moments."""
    samples = list(read_tar(ingest))

    def moments_of(batch: list[Image.Image]) -> list[_Arrays]:
        return [{"moments": one} for one in precomputer.moments(batch)]

    return _column(samples, one_bad_apple(Steps(moments_of), samples, settings.batch_size, picture_of))


def text_column(ingest: bytes, bound: bytes, precomputer: Precomputer, settings: ShardSettings) -> bytes:
    """The caption of every bound photo: `text` and, where the base has it, `pooled`."""
    samples = _bound_samples(bound)

    def caption_of(sample: Sample) -> str:
        return str(sample.json()["caption"])

    def text_of(batch: list[str]) -> list[_Arrays]:
        made = precomputer.text(batch)
        if made.pooled is None:
            return [{"text": states} for states in made.states]
        return [{"text": states, "pooled": one} for states, one in zip(made.states, made.pooled, strict=True)]

    return _column(samples, one_bad_apple(Steps(text_of), samples, settings.batch_size, caption_of))


def image_embeds_column(ingest: bytes, bound: bytes, precomputer: Precomputer, settings: ShardSettings) -> bytes:
    """The subjects of every bound photo, `reference_variants` crops of each."""
    photos = {sample.key: sample for sample in read_tar(ingest)}
    samples = _bound_samples(bound)

    def crops_of(sample: Sample) -> list[Image.Image]:
        picture, instances = picture_of(photos[sample.key]), decode_instances(sample.parts["instances.png"])
        return sample_crops(picture, instances, sample.json()["subjects"], settings, sample.key)

    def embeds_of(batch: list[list[Image.Image]]) -> list[_Arrays]:
        embeds = precomputer.image_embeds([crop for crops in batch for crop in crops])
        ends = np.cumsum([len(crops) for crops in batch])[:-1]
        each = (one.reshape(-1, settings.reference_variants, embeds.shape[-1]) for one in np.split(embeds, ends))
        return [{"image_embeds": one} for one in each]

    return _column(samples, one_bad_apple(Steps(embeds_of), samples, settings.batch_size, crops_of))


# Ingest shard, bound shard, models and settings -> shard of `.npy` files, or of a `.json` where the model failed.
COLUMNS: dict[str, Callable[[bytes, bytes, Precomputer, ShardSettings], bytes]] = {
    "moments": moments_column,
    "text": text_column,
    "image_embeds": image_embeds_column,
}


def wanted_columns(settings: ShardSettings) -> tuple[str, ...]:
    """The columns that the settings switch on."""
    return tuple(name for name in COLUMNS if getattr(settings, name))


def _bound_samples(bound: bytes) -> list[Sample]:
    return [sample for sample in read_tar(bound) if "instances.png" in sample.parts]


def _column(samples: Sequence[Sample], made: Sequence[_Arrays | Exception]) -> bytes:
    return write_tar(
        (
            sample.key,
            failed(arrays)
            if isinstance(arrays, Exception)
            else {f"{name}.npy": encode_npy(array) for name, array in arrays.items()},
        )
        for sample, arrays in zip(samples, made, strict=True)
    )
