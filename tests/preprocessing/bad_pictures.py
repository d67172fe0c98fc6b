"""A corpus of damaged, odd and hostile pictures, made here: each with what is to become of it."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from preprocessing.photos import Reason

# What the corpus is read with: small, so that a bomb need not be large.
MIN_SIDE, MAX_PIXELS = 16, 1_000_000
SIZE = (96, 80)
RED = (200, 30, 40)


@dataclass(frozen=True)
class Case:
    """One file. `fate`: why it is refused, None where it is kept."""

    name: str
    data: bytes
    fate: Reason | None


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth, with some noise: compressed data are spread over the whole file."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3))
    return Image.fromarray((np.stack([x, y, x * y], axis=2) * 200 + noise).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *middle: bytes, depth: int = 8, colour: int = 2, pixels: bytes | None = None) -> bytes:
    """A PNG from its parts; without `pixels`, black ones of the right number."""
    if pixels is None:
        pixels = zlib.compress(bytes((1 + 3 * width) * height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *middle, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def tiff(width: int, height: int, strip: bytes = b"", compression: int = 1, **entries: int) -> bytes:
    """A grey little-endian TIFF of one strip that claims any size."""
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(strip)}
    tags |= {int(name[1:]): value for name, value in entries.items()}
    directory = struct.pack("<H", len(tags))
    for tag, value in sorted(tags.items()):
        directory += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\x00" + struct.pack("<I", 8 + len(strip)) + strip + directory + bytes(4)


def with_bytes(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with a segment of its own behind the start marker."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def exif(*entries: tuple[int, int, int, bytes], following: int = 0) -> bytes:
    """An EXIF segment's body: entries (tag, type, count, four bytes) and the offset of the next directory."""
    directory = struct.pack(">H", len(entries))
    directory += b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\x00\x00MM\x00*" + struct.pack(">I", 8) + directory + struct.pack(">I", following)


@lru_cache
def whole_files(size: tuple[int, int] = SIZE) -> dict[str, bytes]:
    """A good file of each kind: what is damaged below, and what fuzzing starts from."""
    image = picture(size)
    return {
        "jpeg": encoded(image, "JPEG", quality=90),
        "progressive-jpeg": encoded(image, "JPEG", quality=90, progressive=True),
        "cmyk-jpeg": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image),
        "palette-png": encoded(image.convert("P")),
        "webp": encoded(image, "WEBP", quality=90),
        "lossless-webp": encoded(image, "WEBP", lossless=True),
        "tiff": encoded(image, "TIFF"),
        "lzw-tiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate-tiff": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"),
        "avif": encoded(image, "AVIF"),
    }


def corpus() -> list[Case]:
    """Every case; names are unique."""
    return [*_cut(), *_headers(), *_bombs(), *_profiles(), *_metadata(), *_modes(), *_many(), *_shapes(), *_others()]


def _cut() -> Iterator[Case]:
    for name, data in whole_files().items():
        yield Case(f"whole-{name}", data, None)
        for share in (5, 50, 90):
            yield Case(f"{name}-cut-at-{share}%", data[: len(data) * share // 100], Reason.TRUNCATED)


def _headers() -> Iterator[Case]:
    files = whole_files()
    jpeg, gif, bmp, webp = files["jpeg"], files["gif"], files["bmp"], files["lossless-webp"]
    frame = jpeg.index(b"\xff\xc0") + 5  # height, width
    yield Case("png-wrong-magic", b"\x88" + files["png"][1:], Reason.NOT_AN_IMAGE)
    yield Case("jpeg-wrong-magic", b"\xff\xd9" + jpeg[2:], Reason.NOT_AN_IMAGE)
    yield Case("gif-wrong-version", b"GIF88a" + gif[6:], Reason.NOT_AN_IMAGE)
    yield Case("png-wrong-crc-of-header", with_bytes(files["png"], 29, b"\0\0\0\0"), Reason.TRUNCATED)
    pixels = files["png"].index(b"IDAT")
    yield Case("png-damaged-pixels", with_bytes(files["png"], pixels + 200, b"\0" * 9), Reason.TRUNCATED)
    yield Case("png-without-pixels", png(32, 32, pixels=b""), Reason.TRUNCATED)
    yield Case("png-too-few-pixels", png(32, 32, pixels=zlib.compress(bytes(40))), Reason.TRUNCATED)
    yield Case("png-unknown-colour-type", png(32, 32, colour=5), Reason.TRUNCATED)
    yield Case("png-zero-width", png(0, 32), Reason.TRUNCATED)
    yield Case("png-zero-height", png(32, 0), Reason.TRUNCATED)
    yield Case("jpeg-zero-height", with_bytes(jpeg, frame, b"\0\0"), Reason.TRUNCATED)
    yield Case("jpeg-zero-width", with_bytes(jpeg, frame + 2, b"\0\0"), Reason.TRUNCATED)
    yield Case("gif-zero-size", with_bytes(gif, 6, bytes(4)), None)  # its frame has a size of its own
    yield Case("bmp-zero-size", with_bytes(bmp, 18, bytes(8)), Reason.NOT_AN_IMAGE)
    yield Case("tiff-zero-size", tiff(0, 0), Reason.TRUNCATED)
    no_tables = jpeg[: jpeg.index(b"\xff\xc4")] + jpeg[jpeg.index(b"\xff\xda") :]
    yield Case("jpeg-without-tables", no_tables, None)  # as motion JPEG has it: the standard's own tables hold
    yield Case("jpeg-start-only", b"\xff\xd8\xff\xd9", Reason.TRUNCATED)
    yield Case("jpeg-segment-beyond-the-end", jpeg[:2] + b"\xff\xe5\xff\xff" + jpeg[2:], Reason.TRUNCATED)
    yield Case("tiff-directory-beyond-the-end", b"II*\x00\xff\xff\xff\x7f", Reason.TRUNCATED)
    yield Case("tiff-directory-in-a-circle", b"II*\x00\x08\0\0\0" + struct.pack("<HI", 0, 8), Reason.TRUNCATED)
    yield Case("webp-without-a-picture", b"RIFF\x0c\0\0\0WEBPVP8 \0\0\0\0", Reason.TRUNCATED)
    # Sizes that are claimed and not there.
    yield Case("png-claims-2^31", png(2**31 - 1, 2**31 - 1, pixels=b""), Reason.TOO_LARGE)
    yield Case("jpeg-claims-65535", with_bytes(jpeg, frame, b"\xff\xff\xff\xff"), Reason.TOO_LARGE)
    yield Case("gif-claims-65535", with_bytes(gif, 6, b"\xff\xff\xff\xff"), Reason.TOO_LARGE)
    yield Case("bmp-claims-2^31", with_bytes(bmp, 18, struct.pack("<ii", 2**31 - 1, 2**31 - 1)), Reason.TOO_LARGE)
    yield Case("bmp-negative-height", with_bytes(bmp, 22, struct.pack("<i", -80)), None)  # rows from top to bottom
    yield Case("tiff-claims-2^32", tiff(2**32 - 1, 2**32 - 1), Reason.TOO_LARGE)
    yield Case("webp-claims-16383", with_bytes(webp, 21, b"\xff\xff\xff\x0f"), Reason.TOO_LARGE)


def _bombs() -> Iterator[Case]:
    black = Image.new("L", (1200, 1000))
    yield Case("bomb-png", encoded(black), Reason.TOO_LARGE)
    yield Case("bomb-tiff", encoded(black, "TIFF", compression="tiff_adobe_deflate"), Reason.TOO_LARGE)
    yield Case("bomb-webp", encoded(black.convert("RGB"), "WEBP", lossless=True), Reason.TOO_LARGE)
    yield Case("bomb-gif", encoded(black, "GIF"), Reason.TOO_LARGE)
    yield Case("bomb-jpeg", encoded(black, "JPEG"), Reason.TOO_LARGE)
    zeros = zlib.compress(bytes(64 * 2**20), 9)
    yield Case("bomb-in-pngs-pixels", png(32, 32, pixels=zeros), None)  # no more is unpacked than the picture takes
    yield Case("bomb-in-pngs-text", png(32, 32, chunk(b"zTXt", b"a\0\0" + zeros)), Reason.TRUNCATED)
    yield Case("bomb-in-pngs-profile", png(32, 32, chunk(b"iCCP", b"a\0\0" + zeros)), Reason.TRUNCATED)
    yield Case("bomb-of-texts", png(32, 32, *[chunk(b"tEXt", b"a\0" + b"x" * 10**6)] * 70), Reason.TRUNCATED)
    strip = zlib.compress(bytes(64 * 2**20), 9)
    yield Case("bomb-in-tiffs-strip", tiff(32, 32, strip, 8), None)  # the same
    yield Case("tiff-of-many-bands", tiff(32, 32, bytes(1024), t277=60_000), Reason.TRUNCATED)


def _profiles() -> Iterator[Case]:
    image = picture()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    noise = np.random.default_rng(1).bytes(600)
    for name, profile in {
        "good": srgb,
        "noise": noise,
        "cut": srgb[:200],
        "header-and-noise": srgb[:128] + noise,
        "for-another-colour-space": lab,
        "claims-4-gigabytes": b"\xff\xff\xff\xff" + srgb[4:],
        "many-tags": with_bytes(srgb, 128, b"\xff\xff\xff\xff"),
    }.items():
        for kind in ("PNG", "JPEG"):
            yield Case(f"profile-{name}-{kind.lower()}", encoded(image, kind, icc_profile=profile), None)
    yield Case("profile-noise-webp", encoded(image, "WEBP", icc_profile=noise), None)
    yield Case("profile-noise-cmyk", encoded(image.convert("CMYK"), "JPEG", icc_profile=noise), None)


def _metadata() -> Iterator[Case]:
    jpeg = whole_files()["jpeg"]
    orientation = 0x0112
    for number in (*range(0, 10), 65535):
        body = exif((orientation, 3, 1, struct.pack(">HH", number, 0)))
        yield Case(f"orientation-{number}", with_segment(jpeg, 0xE1, body), None)
    bodies = {
        "noise": b"Exif\0\0" + np.random.default_rng(2).bytes(300),
        "empty": b"Exif\0\0",
        "half-a-header": b"Exif\0\0MM\0",
        "orientation-as-text": exif((orientation, 2, 4, b"six\0")),
        "orientation-as-many": exif((orientation, 3, 2**31, b"\0\0\0\x08")),
        "orientation-as-a-fraction": exif((orientation, 5, 1, b"\0\0\xff\xff")),
        "unknown-type": exif((orientation, 99, 1, b"\0\x06\0\0")),
        "directory-in-a-circle": exif((0x8769, 4, 1, b"\0\0\0\x08"), following=8),
        "offset-beyond-the-end": b"Exif\0\0MM\0*\xff\xff\xff\xff",
        "65535-entries": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" * 4000,
    }
    for name, body in bodies.items():
        yield Case(f"exif-{name}", with_segment(jpeg, 0xE1, body), None)
    yield Case("xmp-noise", with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta" + b"<" * 999), None)
    yield Case("photoshop-noise", with_segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM\x04\x04" + b"\xff" * 99), None)
    yield Case("adobe-marker-cut", with_segment(jpeg, 0xEE, b"Adobe"), Reason.TRUNCATED)
    yield Case("comment-in-every-script", with_segment(jpeg, 0xFE, "né \u202e照片 🙂\0".encode()), None)
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<" * 5000)
    text.add_text("Raw profile type exif", "\nexif\n 99\nzz")
    yield Case("png-text-noise", encoded(picture(), pnginfo=text), None)


def _modes() -> Iterator[Case]:
    image = picture()
    ramp = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE[1], SIZE[0])
    cmyk = encoded(image.convert("CMYK"), "JPEG")
    adobe = cmyk.index(b"Adobe")
    yield Case("mode-cmyk-inverted-or-not", with_bytes(cmyk, adobe + 11, b"\0"), None)
    yield Case("mode-ycck", with_bytes(cmyk, adobe + 11, b"\x02"), None)
    yield Case("mode-cmyk-tiff", encoded(image.convert("CMYK"), "TIFF"), None)
    yield Case("mode-ycbcr-tiff", encoded(image.convert("YCbCr"), "TIFF"), Reason.TRUNCATED)
    yield Case("mode-lab-tiff", encoded(image.convert("LAB"), "TIFF"), None)
    yield Case("mode-16-bit-png", encoded(Image.fromarray(ramp)), None)
    yield Case("mode-16-bit-tiff", encoded(Image.fromarray(ramp), "TIFF"), None)
    yield Case("mode-16-bit-rgb-png", png(32, 32, depth=16, pixels=zlib.compress(bytes((1 + 6 * 32) * 32))), None)
    floats = Image.fromarray(np.full((32, 32), np.nan, np.float32))
    yield Case("mode-float-tiff", encoded(floats, "TIFF"), Reason.UNSUPPORTED_MODE)
    wide = Image.fromarray(np.full((32, 32), 2**30, np.int32))
    yield Case("mode-32-bit-tiff", encoded(wide, "TIFF"), Reason.UNSUPPORTED_MODE)
    yield Case("mode-1-bit", encoded(image.convert("1")), None)
    yield Case("mode-grey-and-alpha", encoded(image.convert("LA")), None)
    yield Case("mode-rgba-webp", encoded(image.convert("RGBA"), "WEBP"), None)
    yield Case("mode-palette-transparency", encoded(image.convert("P"), transparency=3), None)
    yield Case("mode-palette-of-bytes", encoded(image.convert("P"), transparency=bytes(range(256))), None)
    yield Case("mode-rgb-transparency", encoded(image, transparency=(1, 2, 3)), None)
    yield Case("mode-palette-missing", png(32, 32, colour=3, pixels=zlib.compress(bytes(33 * 32))), None)
    short = chunk(b"PLTE", bytes(3))
    too_short = png(32, 32, short, colour=3, pixels=zlib.compress(b"\xee" * 33 * 32))
    yield Case("mode-palette-too-short", too_short, Reason.TRUNCATED)


def _many() -> Iterator[Case]:
    frames = [picture(), picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        yield Case(f"animated-{kind.lower()}", data, Reason.ANIMATED)
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    yield Case("mpo-of-a-telephone", data, None)
    yield Case("mpo-without-its-second-picture", data[: data.rindex(b"\xff\xd8")], None)
    first = encoded(frames[0], "JPEG")
    yield Case("two-jpegs-in-a-row", first + encoded(frames[1], "JPEG"), None)


def _shapes() -> Iterator[Case]:
    yield Case("one-pixel-png", encoded(Image.new("RGB", (1, 1))), Reason.TOO_SMALL)
    yield Case("one-pixel-gif", encoded(Image.new("P", (1, 1)), "GIF"), Reason.TOO_SMALL)
    yield Case("one-row-of-65500", encoded(Image.new("RGB", (65500, 1)), "JPEG"), Reason.TOO_SMALL)
    yield Case("one-column-of-16383", encoded(Image.new("RGB", (1, 16383)), "WEBP"), Reason.TOO_SMALL)
    yield Case("a-strip-of-60000", encoded(Image.new("L", (60_000, 16)), "JPEG"), None)
    yield Case("a-tower-of-60000", encoded(Image.new("L", (16, 60_000))), None)
    yield Case("the-smallest-that-is-kept", encoded(Image.new("RGB", (MIN_SIDE, MIN_SIDE), RED), "JPEG"), None)
    yield Case("a-pixel-too-narrow", encoded(Image.new("RGB", (MIN_SIDE - 1, 99), RED), "JPEG"), Reason.TOO_SMALL)
    yield Case("the-largest-that-is-kept", encoded(Image.new("L", (1000, 1000)), "GIF"), None)
    yield Case("a-row-too-high", encoded(Image.new("L", (1000, 1001)), "GIF"), Reason.TOO_LARGE)


def _others() -> Iterator[Case]:
    jpeg = whole_files()["jpeg"]
    yield Case("empty", b"", Reason.EMPTY_FILE)
    yield Case("noise", np.random.default_rng(3).bytes(5000), Reason.NOT_AN_IMAGE)
    yield Case("zeros", bytes(5000), Reason.NOT_AN_IMAGE)
    for name, start in {
        "text": b"Dear photographer,\n",
        "html": b"<!DOCTYPE html><img src=x.jpg>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>',
        "pdf": b"%PDF-1.7\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n",
        "zip": b"PK\x03\x04",
        "icon": b"\0\0\x01\0\x01\0\x20\x20\0\0\x01\0\x18\0",
        "photoshop": b"8BPS\0\x01",
        "heic": b"\0\0\0\x18ftypheic",
        "jpeg-2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "executable": b"\x7fELF\x02\x01\x01",
    }.items():
        yield Case(f"not-a-picture-{name}", start + bytes(200), Reason.NOT_AN_IMAGE)
    yield Case("polyglot-jpeg-zip", jpeg + b"PK\x03\x04" + bytes(99), None)
    yield Case("polyglot-png-html", encoded(picture()) + b"<script>alert(1)</script>", None)
    script = with_bytes(whole_files()["gif"], 0, b"GIF89a")
    yield Case("polyglot-gif-script", script + b"*/=1;alert(1);/*", None)
    yield Case("polyglot-pdf-jpeg", b"%PDF-1.7\n" + jpeg, Reason.NOT_AN_IMAGE)
    yield Case("newline-before-a-jpeg", b"\n" + jpeg, Reason.NOT_AN_IMAGE)
    yield Case("jpeg-with-fill-bytes", jpeg[:2] + b"\xff" * 50 + jpeg[2:], None)
    yield Case("jpeg-in-base64", b"/9j/4AAQSkZJRgABAQAAAQABAAD", Reason.NOT_AN_IMAGE)
