"""What a photo looks like, small enough to be held against every other: three 64-bit hashes and one embedding.

The hash is the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010):
grey, 32 × 32, DCT-II, the signs of the 8 × 8 lowest frequencies without those that are constant along an axis. Signs
instead of his comparison with the median (which is near zero) make mirroring exact: it flips the odd columns, nothing
else. A cut-off edge moves every frequency, so the picture's middle is hashed too, with 2.5 % and 5 % of each side gone.

The embedding is CLIP's of the picture plus that of its mirror image, so both have the same one.

Axes: N photos, K hashes of one photo (whole, then the middles), D embedding width, B pictures of a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, UInt64
from PIL import Image
from scipy.fft import dctn

from infra.model_files import resolve
from infra.settings import ModelReference
from preprocessing.shards import decode_npy, decode_picture, encode_json, encode_npy, read_tar, write_tar

# What is cut from each side before the picture is hashed.
_EDGES = (0.0, 0.025, 0.05)
_SIDE = 32
_FREQUENCIES = slice(1, 9)
_WEIGHTS = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))
# Column frequencies 1, 3, 5, 7 of the eight kept ones (1 … 8), in the order of the bits.
_ODD_COLUMNS = np.uint64(int(sum(1 << bit for bit in range(64) if bit % 2 == 0)))


class SignedPhoto(NamedTuple):
    """Whose signature it is. identity: "" where the source knows none."""

    key: str
    source: str
    origin: str
    identity: str

    @property
    def name(self) -> str:
        """As people and `moa forget` write it."""
        return f"{self.source}:{self.origin}"


@dataclass(frozen=True)
class Signatures:
    """The signatures of N photos, row by row."""

    photos: list[SignedPhoto]
    hashes: UInt64[np.ndarray, "n k"]
    embeds: Float16[np.ndarray, "n d"]

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, rows: Sequence[int]) -> "Signatures":
        """Some of the photos, in this order."""
        chosen = np.asarray(rows, dtype=np.intp)
        return Signatures([self.photos[row] for row in rows], self.hashes[chosen], self.embeds[chosen])


def joined(parts: Sequence[Signatures]) -> Signatures:
    """Several sets of signatures as one."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return read_signatures([])
    return Signatures(
        [photo for part in parts for photo in part.photos],
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.embeds for part in parts]),
    )


def dct_hashes(image: Image.Image) -> UInt64[np.ndarray, " k"]:
    """The hash of the picture and of its middles. Bit 8 r + c is the sign of row frequency r + 1, column c + 1."""
    grey = image.convert("L")
    hashes = np.empty(len(_EDGES), np.uint64)
    for place, edge in enumerate(_EDGES):
        left, top = grey.width * edge, grey.height * edge
        box = (left, top, grey.width - left, grey.height - top)
        small = grey.resize((_SIDE, _SIDE), Image.Resampling.BOX, box=box)
        frequencies = dctn(np.asarray(small, np.float64))[_FREQUENCIES, _FREQUENCIES]
        hashes[place] = _WEIGHTS[frequencies.ravel() > 0].sum(dtype=np.uint64)
    return hashes


def mirrored(hashes: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """The hashes of the mirror images."""
    return hashes ^ _ODD_COLUMNS


class Signer:
    """CLIP's image tower, loaded once per process; safetensors only."""

    def __init__(self, reference: ModelReference, batch_size: int) -> None:
        import infra.torchvision_ops  # noqa: F401, I001  # before transformers
        import torch  # here: the driver, which compares signatures, need not load it
        from transformers import AutoImageProcessor, CLIPModel

        where, arguments = resolve(reference, "clip")
        options: dict[str, Any] = {**arguments, "use_safetensors": True}
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # As in `precompute`: a checkpoint's projection width is the whole model's, which the tower alone misreads.
        clip: Any = CLIPModel.from_pretrained(where, **options).eval().requires_grad_(False)
        self._tower: Any = clip.vision_model.to(self._device)
        self._projection: Any = clip.visual_projection.to(self._device)
        self._processor: Any = AutoImageProcessor.from_pretrained(where, **arguments)
        self._batch_size = batch_size

    def embeds(self, images: Sequence[Image.Image]) -> Float16[np.ndarray, "b d"]:
        """Unit vectors, the same for a picture and its mirror image."""
        import torch

        found = [np.empty((0, int(self._projection.out_features)), np.float16)]
        with torch.inference_mode():
            for start in range(0, len(images), self._batch_size):
                batch = [image.convert("RGB") for image in images[start : start + self._batch_size]]
                both = [*batch, *(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in batch)]
                pixels = self._processor(images=both, return_tensors="pt")["pixel_values"].to(self._device)
                embeds = self._projection(self._tower(pixel_values=pixels).pooler_output)
                one, other = torch.nn.functional.normalize(embeds, dim=-1).chunk(2)
                mean = torch.nn.functional.normalize(one + other, dim=-1)
                found.append(mean.to(torch.float16).cpu().numpy())
        return np.concatenate(found)

    def sign(self, photos: Sequence[SignedPhoto], images: Sequence[Image.Image]) -> Signatures:
        """The signatures of pictures, and whose they are."""
        hashes = np.array([dct_hashes(image) for image in images], np.uint64).reshape(-1, len(_EDGES))
        return Signatures(list(photos), hashes, self.embeds(images))


def sign_shard(ingest: bytes, signer: Signer) -> bytes:
    """Ingested shard → `{key}.json` (source, origin, identity, hashes in hex) and `{key}.embed.npy` of every photo."""
    photos, images = [], []
    for sample in read_tar(ingest):
        about = sample.json()
        texts = (str(about.get(name) or "") for name in ("source", "origin", "identity"))
        photos.append(SignedPhoto(sample.key, *texts))
        images.append(decode_picture(sample.parts["jpg"]))
    signed = signer.sign(photos, images)
    written = []
    for photo, hashes, embed in zip(photos, signed.hashes, signed.embeds, strict=True):
        described = {**photo._asdict(), "hashes": [f"{int(value):016x}" for value in hashes]}
        written.append((photo.key, {"json": encode_json(described), "embed.npy": encode_npy(embed)}))
    return write_tar(written)


def read_signatures(tars: Iterable[bytes]) -> Signatures:
    """The signatures in several shards, as one."""
    photos, hashes, embeds = [], [], []
    for tar in tars:
        for sample in read_tar(tar):
            about = sample.json()
            photos.append(SignedPhoto(*(str(about[name]) for name in SignedPhoto._fields)))
            hashes.append([int(value, 16) for value in about["hashes"]])
            embeds.append(decode_npy(sample.parts["embed.npy"]))
    return Signatures(
        photos,
        np.array(hashes, np.uint64).reshape(-1, len(_EDGES)),
        np.stack(embeds) if embeds else np.empty((0, 0), np.float16),
    )
