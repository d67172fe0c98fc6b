"""Decode, orient, check and crop photos; every reason for which one is refused is named here."""

import io
import os
import stat
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from preprocessing.faces import Face
from preprocessing.places import Place, PlaceError, read_place

# Only decoders for photographs: Pillow knows forty formats, among them ones that start other programs (EPS).
# Those that this build of Pillow lacks are left out: naming one would fail for every file.
Image.init()
_FORMATS: list[str] = [name for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF") if name in Image.OPEN]
# MPO (a JPEG with more pictures behind it) is missing: telephones write it, and its first picture is the photo.
_MANY_FRAMES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")
_MAX_FILE_BYTES = 1 << 30
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Reason(StrEnum):
    """Why a photo was refused. The value goes into the catalog; `sentence` is for people."""

    EMPTY_FILE = "empty_file"
    UNREADABLE = "unreadable"
    NOT_A_FILE = "not_a_file"
    BROKEN_LINK = "broken_link"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    ANIMATED = "animated"
    UNSUPPORTED_MODE = "unsupported_mode"
    DUPLICATE = "duplicate"
    MISSING_FILE = "missing_file"
    MISSING_ANNOTATION = "missing_annotation"
    BAD_ANNOTATION = "bad_annotation"
    UNSAFE_PATH = "unsafe_path"
    SIZE_MISMATCH = "size_mismatch"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    CHANGED = "changed"
    BAD_ARCHIVE = "bad_archive"
    NO_CAPTION = "no_caption"
    NO_PERSON = "no_person"
    NO_PERSON_WORD = "no_person_word"
    AMBIGUOUS = "ambiguous"
    TOO_MANY_PEOPLE = "too_many_people"
    CUT_OFF = "cut_off"
    NO_FACE = "no_face"
    FACE_OUTSIDE_MASK = "face_outside_mask"
    FACE_TOO_SMALL = "face_too_small"
    BLURRED = "blurred"
    MODEL_FAILED = "model_failed"
    NEAR_DUPLICATE = "near_duplicate"
    FORGOTTEN = "forgotten"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]

    @property
    def may_mend(self) -> bool:
        """Whether the same name may be fine another day: what is wrong is around the photo, not in its bytes."""
        return self in _MAY_MEND


_SENTENCES = {
    Reason.EMPTY_FILE: "The file has no bytes.",
    Reason.UNREADABLE: "The file could not be read: permission or a failing disk.",
    Reason.NOT_A_FILE: "The name belongs to a directory, pipe, socket or device, not to a file.",
    Reason.BROKEN_LINK: "A symbolic link that leads nowhere.",
    Reason.NOT_AN_IMAGE: "The bytes are no picture in a format that is read here.",
    Reason.TRUNCATED: "The picture's data end too early or are damaged.",
    Reason.TOO_SMALL: "The shorter side has fewer pixels than ingest.min_side.",
    Reason.TOO_LARGE: "More pixels than ingest.max_pixels, or a file above 1 GiB.",
    Reason.ANIMATED: "Several frames or pages: it is not clear which one is the photo.",
    Reason.UNSUPPORTED_MODE: "Pixels that have no plain meaning as colours (floating point or 32 bits).",
    Reason.DUPLICATE: "The same bytes were there already.",
    Reason.MISSING_FILE: "There is no such file.",
    Reason.MISSING_ANNOTATION: "The file is there, but a list of the data set does not name it.",
    Reason.BAD_ANNOTATION: "The data set's entry for this file cannot be understood.",
    Reason.UNSAFE_PATH: "The data set's list names a path outside its own folder.",
    Reason.SIZE_MISMATCH: "The file or the picture has another size than the data set's list says.",
    Reason.CHECKSUM_MISMATCH: "The file has another MD5 digest than the data set's list says.",
    Reason.CHANGED: "The file changed after it was listed or while it was read.",
    Reason.BAD_ARCHIVE: "The archive's entry for this file is damaged, hostile or of a kind that is not read here.",
    Reason.NO_CAPTION: "The captioner found no words.",
    Reason.NO_PERSON: "The segmenter found nobody, and no face is known.",
    Reason.NO_PERSON_WORD: "The caption names no person.",
    Reason.AMBIGUOUS: "Another way to give the caption's words to the people is as good, within binding.margin.",
    Reason.TOO_MANY_PEOPLE: "More people than filter.max_people.",
    Reason.CUT_OFF: "The picture's edge cuts through more of the person than filter.max_cut.",
    Reason.NO_FACE: "No face was found on the person.",
    Reason.FACE_OUTSIDE_MASK: "Less of the face lies on the person's mask than filter.min_face_on_mask.",
    Reason.FACE_TOO_SMALL: "The face's shorter side has fewer pixels than filter.min_face.",
    Reason.BLURRED: "The face is less sharp than filter.min_sharpness.",
    Reason.MODEL_FAILED: "A model failed on this photo; the detail says how.",
    Reason.NEAR_DUPLICATE: "The photo repeats another one, which the detail names.",
    Reason.FORGOTTEN: "Somebody asked that it be forgotten; the detail gives the reason.",
}

_MAY_MEND = {
    Reason.UNREADABLE,
    Reason.BROKEN_LINK,
    Reason.MISSING_FILE,
    Reason.MISSING_ANNOTATION,
    Reason.CHANGED,
}


class PhotoRefused(Exception):
    """One photo is refused, for a named reason; the run goes on."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["PhotoRefused"], tuple[Reason, str]]:
        return PhotoRefused, (self.reason, self.detail)  # survives the way between processes


def read_bytes(path: Place) -> bytes:
    """All bytes of the place, or PhotoRefused. Links are followed; pipes and devices are never opened."""
    if not isinstance(path, Path):
        try:
            data = read_place(path, _MAX_FILE_BYTES)
        except PlaceError as error:
            raise PhotoRefused(Reason(error.reason), error.detail) from error
        if not data:
            raise PhotoRefused(Reason.EMPTY_FILE, "0 bytes")
        return data
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise PhotoRefused(Reason.NOT_A_FILE, _kind(status.st_mode))
        # The file may be swapped for a pipe after the check: without O_NONBLOCK, opening one waits for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PhotoRefused(Reason.NOT_A_FILE, _kind(status.st_mode))
            if status.st_size > _MAX_FILE_BYTES:
                raise PhotoRefused(Reason.TOO_LARGE, f"{status.st_size} bytes")
            data = file.read(_MAX_FILE_BYTES + 1)
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                raise PhotoRefused(Reason.CHANGED, "the file changed while it was read")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if os.path.islink(path) and not os.path.exists(path):
            target = os.fsencode(os.readlink(path)).decode("utf-8", "backslashreplace")
            raise PhotoRefused(Reason.BROKEN_LINK, f"to {target[:120]}") from error
        if isinstance(error, FileNotFoundError):
            raise PhotoRefused(Reason.MISSING_FILE) from error
        raise PhotoRefused(Reason.UNREADABLE, _short(getattr(error, "strerror", None) or error)) from error
    if not data:
        raise PhotoRefused(Reason.EMPTY_FILE, "0 bytes")
    if len(data) > _MAX_FILE_BYTES:  # in /proc, files have more bytes than they say
        raise PhotoRefused(Reason.TOO_LARGE, "the file grew while it was read")
    return data


def decode(data: bytes, min_side: int, max_pixels: int) -> Image.Image:
    """An upright 8-bit sRGB picture from a file's bytes; raises PhotoRefused and nothing else.

    The size is checked in the header before a pixel is decoded. Transparent parts come out white, 16-bit greys are
    scaled, embedded colour profiles are applied, and nothing of the file's metadata stays in the result.
    """
    if not data:
        raise PhotoRefused(Reason.EMPTY_FILE, "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is decided here: large pictures, odd EXIF, TIFF tags
        image = _open(data, max_pixels)
        _check_header(image, min_side, max_pixels)
        try:
            image.load()
        except Exception as error:  # decoders raise anything from OSError to struct.error on damaged data
            raise PhotoRefused(Reason.TRUNCATED, _short(error)) from error
        try:
            upright = _upright(image)
            rgb = _srgb(upright)
        except PhotoRefused:
            raise
        except Exception as error:
            raise PhotoRefused(Reason.UNSUPPORTED_MODE, f"{image.mode}: {_short(error)}") from error
    return rgb


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise PhotoRefused(Reason.TOO_LARGE, _short(error)) from error
    except Exception as error:
        if data.startswith(_PNG_START) and len(data) >= len(_PNG_START) + 8:
            # Pillow reads on to the pixels before it tells a PNG's size; a mere header is judged by what it claims.
            width, height = struct.unpack_from(">II", data, len(_PNG_START))
            if width * height > max_pixels:
                raise PhotoRefused(Reason.TOO_LARGE, _size_above(width, height, max_pixels)) from error
        if data.startswith(_STARTS) or data[4:12] in _AVIF_BRANDS or data[8:12] == b"WEBP":
            raise PhotoRefused(Reason.TRUNCATED, "the header is damaged or ends too early") from error
        raise PhotoRefused(Reason.NOT_AN_IMAGE, f"begins with {data[:8]!r}") from error


def _check_header(image: Image.Image, min_side: int, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise PhotoRefused(Reason.TOO_LARGE, _size_above(image.width, image.height, max_pixels))
    if min(image.size) < min_side:
        raise PhotoRefused(Reason.TOO_SMALL, f"{image.width} x {image.height} pixels, at least {min_side} a side")
    try:
        many = image.format in _MANY_FRAMES and getattr(image, "is_animated", False)
    except Exception as error:  # looking for a second frame reads beyond the header
        raise PhotoRefused(Reason.TRUNCATED, _short(error)) from error
    if many:
        raise PhotoRefused(Reason.ANIMATED, f"{image.format} with more than one frame")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels, which are fine
        return image
    return image if turn is None else image.transpose(turn)


def _srgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB: profiles applied, 16 bits to 8, transparency over white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise PhotoRefused(Reason.UNSUPPORTED_MODE, f"{image.mode} with values beyond 16 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257
    elif image.mode == "F":
        raise PhotoRefused(Reason.UNSUPPORTED_MODE, "floating point")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _apply_profile(image, profile)
    clean = image.convert("RGB")  # always a copy, of Pillow's plain class: what its file's class keeps stays behind
    clean.info.clear()  # EXIF, comments and profile
    return clean


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return converted or image
    except Exception:  # a damaged or ill-matched profile: the plain conversion is what every viewer shows then
        return image


@dataclass(frozen=True)
class Crop:
    """A square cut from a picture and resized: output = (input − (left, top)) · pixels / side. All in pixels."""

    left: int
    top: int
    side: int
    pixels: int

    def point(self, x: float, y: float) -> tuple[float, float]:
        scale = self.pixels / self.side
        return (x - self.left) * scale, (y - self.top) * scale

    def face(self, face: Face) -> Face | None:
        """The face in the square's pixels, its box cut at the edges; None where its centre lies outside."""
        x, y = self.point(*face.center)
        if not (0 <= x <= self.pixels and 0 <= y <= self.pixels):
            return None
        corners = (*self.point(face.box[0], face.box[1]), *self.point(face.box[2], face.box[3]))
        x1, y1, x2, y2 = (min(max(value, 0.0), float(self.pixels)) for value in corners)
        marks, quad = (tuple(self.point(*mark) for mark in marks) for marks in (face.landmarks, face.quad))
        return Face((x1, y1, x2, y2), marks, face.score, quad)


def square(image: Image.Image, faces: Sequence[Face], pixels: int) -> tuple[Image.Image, Crop]:
    """The largest square of the picture, laid so that the faces are in it, resized to pixels × pixels.

    All faces if they fit, else the largest. The faces' middle comes to 40 % of the height, for the body is below;
    without faces the square sits in the middle across and at a quarter of the room down, as portraits are framed.
    A square picture of the right size comes back pixel for pixel.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 4
    kept = [face for face in faces if face.area > 0]
    if kept:
        x1, y1 = min(face.box[0] for face in kept), min(face.box[1] for face in kept)
        x2, y2 = max(face.box[2] for face in kept), max(face.box[3] for face in kept)
        if max(x2 - x1, y2 - y1) > side:
            x1, y1, x2, y2 = max(kept, key=lambda face: face.area).box
        left, top = (x1 + x2) / 2 - 0.5 * side, (y1 + y2) / 2 - 0.4 * side
        left, top = _covering(left, side, x1, x2), _covering(top, side, y1, y2)
    crop = Crop(round(min(max(left, 0), width - side)), round(min(max(top, 0), height - side)), side, pixels)
    box = (crop.left, crop.top, crop.left + side, crop.top + side)
    picture = image if image.size == (side, side) else image.crop(box)
    if side != pixels:
        picture = picture.resize((pixels, pixels), Image.Resampling.LANCZOS)  # Pillow's is antialiased
    return picture, crop


def _covering(start: float, side: int, low: float, high: float) -> float:
    """`start` moved as little as possible so that [start, start + side] covers [low, high]; `low` wins in need."""
    return min(max(start, high - side), low)


def _size_above(width: int, height: int, max_pixels: int) -> str:
    return f"{width} x {height} pixels, at most {max_pixels} in all"


def _kind(mode: int) -> str:
    tests = {
        "a directory": stat.S_ISDIR,
        "a pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
        "a device": lambda m: stat.S_ISCHR(m) or stat.S_ISBLK(m),
    }
    return next((name for name, test in tests.items() if test(mode)), "not a regular file")


def _short(error: object) -> str:
    """One line without memory addresses, so that the same photo gives the same row every time."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split("<_io.BytesIO")[0].strip()[:160]
