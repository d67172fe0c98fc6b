"""Every way in which a photo can be odd: handled rightly, or refused for the right reason."""

import io
import os
import pickle
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from preprocessing.faces import Face
from preprocessing.photos import Crop, PhotoRefused, Reason, decode, read_bytes, square

RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Smooth and without symmetry: a turned or mirrored copy differs everywhere."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return Image.fromarray((np.stack([x, y, x * y], axis=2) * 255).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def reason_of(action: Callable[[], object]) -> Reason:
    with pytest.raises(PhotoRefused) as caught:
        action()
    return caught.value.reason


def decoded(data: bytes) -> Image.Image:
    return decode(data, min_side=16, max_pixels=1_000_000)


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_formats_of_photographs_are_read(kind: str) -> None:
    image = decoded(encoded(picture(), kind))
    assert image.mode == "RGB" and image.size == (48, 40)
    assert difference(image, picture()) < 6


def test_refusals_of_bytes() -> None:
    jpeg = encoded(picture((200, 200)), "JPEG", quality=95)
    frames = [picture(), picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    cases = {
        Reason.EMPTY_FILE: [b""],
        Reason.NOT_AN_IMAGE: [
            b"Dear photographer,\nhere is the text.",
            b"\x00" * 100,
            jpeg[:2],
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
        ],
        Reason.TRUNCATED: [jpeg[: len(jpeg) // 2], jpeg[:20], encoded(picture((200, 200)))[:400]],
        Reason.TOO_SMALL: [encoded(Image.new("RGB", (1, 1))), encoded(Image.new("RGB", (400, 15)))],
        Reason.TOO_LARGE: [png_header(30_000, 30_000), png_header(1001, 1000), png_header(2**31 - 1, 2**31 - 1)],
        Reason.ANIMATED: [
            encoded(frames[0], kind, save_all=True, append_images=frames[1:]) for kind in ("GIF", "PNG", "WEBP", "TIFF")
        ],
        Reason.UNSUPPORTED_MODE: [encoded(Image.new("F", (32, 32), 0.5), "TIFF")],
    }
    for reason, files in cases.items():
        for data in files:
            assert reason_of(lambda data=data: decoded(data)) == reason, data[:20]


def test_a_huge_header_is_refused_before_memory_is_taken() -> None:
    # 30,000 x 30,000 pixels would take 2.7 GB; there is no pixel data to speak of, so decoding would say "truncated".
    start_of_pixels = struct.pack(">I", 1000) + b"IDAT"
    for rest in (b"", start_of_pixels, start_of_pixels + zlib.compress(b"\0" * 1000)):
        for side in (9_999, 30_000):
            assert (
                reason_of(lambda side=side, rest=rest: decode(png_header(side, side) + rest, 16, 99_000_000))
                == Reason.TOO_LARGE
            )
        assert reason_of(lambda rest=rest: decode(png_header(90, 90) + rest, 16, 99_000_000)) == Reason.TRUNCATED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = picture()
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # the camera was turned; the viewer turns back by 270
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decoded(encoded(stored, "JPEG", quality=95, exif=exif))
    assert image.size == upright.size
    assert difference(image, upright) < 3
    assert not image.getexif() and "exif" not in image.info


def test_damaged_exif_does_not_cost_the_photo() -> None:
    image = decoded(encoded(picture(), "JPEG", quality=95, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"))
    assert difference(image, picture()) < 3


@pytest.mark.parametrize(
    "mode, kind, options",
    [
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "GIF", {}),
        ("P", "PNG", {}),
        ("CMYK", "JPEG", {"quality": 95}),
        ("CMYK", "TIFF", {}),
    ],
)
def test_colour_modes_become_rgb(mode: str, kind: str, options: dict[str, object]) -> None:
    stored = Image.new("RGB", (32, 32), RED).convert(mode)
    image = decoded(encoded(stored, kind, **options))
    assert image.mode == "RGB"
    assert difference(image, stored.convert("RGB")) < 4


def test_16_bit_greys_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for data in (encoded(Image.fromarray(ramp)), encoded(Image.fromarray(ramp), "TIFF")):
        image = np.asarray(decoded(data))
        assert image.dtype == np.uint8 and np.abs(image[..., 0] - ramp / 257.0).max() <= 0.51
    colour = png_16_bit_rgb((0xC800, 0x1E00, 0x2800))
    assert decoded(colour).getpixel((3, 3)) == (0xC8, 0x1E, 0x28)


def png_16_bit_rgb(pixel: tuple[int, int, int], side: int = 16) -> bytes:
    rows = (b"\x00" + struct.pack(">HHH", *pixel) * side) * side
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_transparency_comes_out_white() -> None:
    clear = Image.new("RGBA", (32, 32), (*RED, 0))
    clear.paste((*RED, 255), (0, 0, 16, 32))
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.paste(0, (16, 0, 32, 32))
    files = [
        encoded(clear),
        encoded(palette, transparency=0),
        encoded(clear.convert("LA")),
        encoded(clear, "WEBP", lossless=True),
    ]
    for data in files:
        image = decoded(data)
        assert image.getpixel((24, 16)) == (255, 255, 255)
        assert image.getpixel((8, 16)) != (255, 255, 255)


def test_a_colour_profile_is_applied_and_a_broken_one_is_not() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(decoded(encoded(picture(), icc_profile=srgb)), picture()) < 2
    assert difference(decoded(encoded(picture(), icc_profile=b"no profile")), picture()) == 0


def test_the_first_picture_of_a_telephones_file_is_the_photo() -> None:
    data = encoded(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))], quality=95)
    assert difference(decoded(data), picture()) < 3


@given(st.data())
@settings(max_examples=150)
def test_damaged_files_are_refused_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        image = decode(bytes(whole[:cut]), 4, 1_000_000)
    except PhotoRefused as refusal:
        assert isinstance(refusal.reason, Reason) and "0x" not in refusal.detail
    else:
        assert image.mode == "RGB" and min(image.size) >= 4


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_random_bytes_are_refused(data: bytes) -> None:
    for head in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00", b"RIFF\x10\x00\x00\x00WEBP", b"BM"):
        try:
            decode(head + data, 4, 10_000)
        except PhotoRefused:
            continue


def test_read_bytes_reads_files_and_links_to_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"photo")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert read_bytes(tmp_path / "a.jpg") == read_bytes(tmp_path / "b.jpg") == b"photo"


def test_read_bytes_refuses_everything_else(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer for ever
    (tmp_path / "device.jpg").symlink_to("/dev/zero")  # reading it would never end
    with open(tmp_path / "vast.jpg", "wb") as vast:
        vast.truncate((1 << 30) + 1)  # sparse: takes no room
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's name may not be longer than 107 bytes
        try:
            listener.bind("socket.jpg")
        finally:
            os.chdir(here)
        expected = {
            "empty.jpg": Reason.EMPTY_FILE,
            "folder.jpg": Reason.NOT_A_FILE,
            "link.jpg": Reason.BROKEN_LINK,
            "loop.jpg": Reason.BROKEN_LINK,
            "pipe.jpg": Reason.NOT_A_FILE,
            "socket.jpg": Reason.NOT_A_FILE,
            "device.jpg": Reason.NOT_A_FILE,
            "vast.jpg": Reason.TOO_LARGE,
            "gone.jpg": Reason.MISSING_FILE,
            "x" * 300 + ".jpg": Reason.UNREADABLE,
            "null\0.jpg": Reason.UNREADABLE,
        }
        for name, reason in expected.items():
            assert reason_of(lambda name=name: read_bytes(tmp_path / name)) == reason, name


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_fails_while_it_is_read_is_unreadable() -> None:
    # Opens well, and its first byte cannot be read: what a failing disk does. (Modes do not stop root from reading.)
    assert reason_of(lambda: read_bytes(Path("/proc/self/mem"))) == Reason.UNREADABLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"photo")
    (tmp_path / "secret.jpg").chmod(0)
    assert reason_of(lambda: read_bytes(tmp_path / "secret.jpg")) == Reason.UNREADABLE


def test_every_reason_has_a_sentence_and_survives_pickling() -> None:
    for reason in Reason:
        assert reason.sentence.endswith(".")
        refusal = pickle.loads(pickle.dumps(PhotoRefused(reason, "why")))
        assert (refusal.reason, refusal.detail) == (reason, "why")


def test_what_is_wrong_with_the_bytes_does_not_mend() -> None:
    assert Reason.MISSING_FILE.may_mend and Reason.BROKEN_LINK.may_mend
    assert not Reason.TRUNCATED.may_mend and not Reason.DUPLICATE.may_mend


def test_square_of_a_square_is_the_picture_itself() -> None:
    image = picture((64, 64))
    result, crop = square(image, [Face((10, 10, 30, 30))], 64)
    assert np.array_equal(np.asarray(result), np.asarray(image))
    assert crop == Crop(0, 0, 64, 64)


def test_square_without_faces_sits_high() -> None:
    assert square(picture((40, 80)), [], 20)[1] == Crop(0, 10, 40, 20)
    assert square(picture((80, 40)), [], 20)[1] == Crop(20, 0, 40, 20)


def test_square_takes_the_largest_face_when_not_all_fit() -> None:
    small, large = Face((2, 5, 12, 15)), Face((160, 5, 185, 35))
    result, crop = square(picture((200, 40)), [small, large], 20)
    assert result.size == (20, 20)
    assert crop.face(large) is not None and crop.face(small) is None


@given(
    st.integers(16, 200),
    st.integers(16, 200),
    st.integers(4, 64),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 1), st.floats(0.05, 1)), max_size=3),
)
@settings(max_examples=150)
def test_square_keeps_the_largest_face(
    width: int, height: int, pixels: int, shapes: list[tuple[float, float, float, float]]
) -> None:
    side = min(width, height)
    faces = []
    for x, y, w, h in shapes:  # inside the picture and no larger than the square
        box_w, box_h = w * side, h * side
        left, top = x * (width - box_w), y * (height - box_h)
        faces.append(Face((left, top, left + box_w, top + box_h), ((left + box_w / 2, top + box_h / 2),)))
    result, crop = square(Image.new("RGB", (width, height)), faces, pixels)
    assert result.size == (pixels, pixels)
    assert 0 <= crop.left <= width - side and 0 <= crop.top <= height - side
    if faces:
        largest = max(faces, key=lambda face: face.area)
        inside = crop.face(largest)
        assert inside is not None
        # Whole but for the rounding of the crop to a pixel.
        assert inside.area >= (largest.area - 2.5 * side) * (pixels / side) ** 2 - 1e-6
        x, y = inside.landmarks[0]
        assert 0 <= x <= pixels and 0 <= y <= pixels


def _seeds() -> list[bytes]:
    image = picture((24, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(image, "JPEG", exif=exif),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image),
        encoded(image.convert("P")),
        encoded(image.convert("RGBA")),
        encoded(image, "GIF"),
        encoded(image, "TIFF"),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "BMP"),
        encoded(image, "WEBP"),
        encoded(Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24))),
    ]


SEEDS = _seeds()
