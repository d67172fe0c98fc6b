"""How many bytes a training sample is in its shard: arrays by their shapes, pictures by what they usually take."""

from infra.settings import ShardSettings

# Assumed, for they depend on the pictures. JPEG of quality 95 without colour subsampling, as ingest writes it: about
# 160 kB for a portrait of 512 pixels. An instance map is a few flat areas. The record: caption, boxes, origin.
JPEG_BYTES_PER_PIXEL = 0.6
MASK_BYTES_PER_PIXEL = 0.02
JSON_BYTES = 1500

_HALF = 2  # bytes of a float16
_NPY_HEADER = 128
_TAR_BLOCK = 512  # a header in front of every file, and the file filled up to whole blocks


def sample_bytes(
    settings: ShardSettings,
    pixels: int,
    moments: tuple[int, ...],
    text: tuple[int, ...],
    image_dim: int,
    subjects: int = 1,
    pooled: int = 0,
) -> dict[str, int]:
    """Bytes of each file of a sample, by its name without the key, and "tar": what the tar adds to them.

    moments: their shape [2C, h, w]; text: [L, D]; image_dim: the width of a subject's feature; pooled: that of SDXL's
    pooled text, which comes with the text, 0 = none. A column that the settings leave out is not in it.
    """
    arrays = {"moments": moments, "text": text, "image_embeds": (subjects, settings.reference_variants, image_dim)}
    files = {
        "jpg": round(JPEG_BYTES_PER_PIXEL * pixels**2),
        "instances.png": round(MASK_BYTES_PER_PIXEL * pixels**2),
        "json": JSON_BYTES,
        **{f"{name}.npy": array_bytes(shape) for name, shape in arrays.items() if getattr(settings, name)},
        **({"pooled.npy": array_bytes((pooled,))} if pooled and settings.text else {}),
    }
    return {**files, "tar": sum(_TAR_BLOCK + -size % _TAR_BLOCK for size in files.values())}


def array_bytes(shape: tuple[int, ...]) -> int:
    """A .npy file of half precision of that shape."""
    size = _HALF
    for side in shape:
        size *= side
    return _NPY_HEADER + size
