"""Training shards of random numbers: for what reads and trains on shards, and does not care what they show."""

import json
from collections.abc import Sequence

import numpy as np

from infra.storage import ObjectStore
from preprocessing.catalog import ShardRow, store_shard
from preprocessing.shards import encode_instances, encode_json, encode_npy, write_tar


def write_shards(
    store: ObjectStore,
    sizes: Sequence[int],
    *,
    latent: tuple[int, int, int],
    text: tuple[int, int],
    features: int,
    fingerprint: str = "f",
    no_number: str = "",
    pooled: int = 0,
) -> list[ShardRow]:
    """A shard per size; latent (C, H, W), text (T, D) and features are those of the base that is trained.

    pooled: the width of SDXL's pooled text; with it come photos of many sizes, each with its cut.
    no_number: the key of a sample whose moments hold NaN.
    """
    _, height, width = latent
    rows = []
    for shard, size in enumerate(sizes):
        samples = []
        for number in range(size):
            stream = np.random.default_rng([shard, number])
            instances = np.zeros((2 * height, 2 * width), np.uint8)
            instances[:, : width + number % 3] = 1
            moments = np.concatenate([stream.normal(size=latent), np.full(latent, -6.0)])
            key = f"{shard:04d}-{number:05d}"
            if key == no_number:
                moments[0, 0, 0] = np.nan
            parts = {
                "json": encode_json({"caption": f"a man {number}", "subjects": [{"token": 2}]}),
                "instances.png": encode_instances(instances),
                "moments.npy": encode_npy(moments.astype(np.float16)),
                "text.npy": encode_npy(stream.normal(size=text).astype(np.float16)),
                "image_embeds.npy": encode_npy(stream.normal(size=(1, 2, features)).astype(np.float16)),
            }
            if pooled:
                more = {"size": [100 + 7 * number, 90 + shard], "crop": [number, 0, 90 + shard + number, 90 + shard]}
                parts["json"] = encode_json({**json.loads(parts["json"]), **more})
                parts["pooled.npy"] = encode_npy(stream.normal(size=pooled).astype(np.float16))
            samples.append((key, parts))
        rows.append(store_shard(store, "shard", f"{shard:04d}", fingerprint, write_tar(samples), size))
    return rows
