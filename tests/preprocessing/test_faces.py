"""Faces from annotations and from MTCNN itself."""

import math

import numpy as np
import pytest
from PIL import Image

from preprocessing.faces import Face, FaceDetector, face_from_5, face_from_68


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    data = pytest.importorskip("skimage.data", reason="the one photograph of a person comes with scikit-image")
    return Image.fromarray(data.astronaut())


def test_mtcnn_finds_the_astronaut(detector: FaceDetector, astronaut: Image.Image) -> None:
    faces = detector.detect(astronaut)
    assert faces[0].score > 0.99
    x, y = faces[0].center
    assert 190 < x < 260 and 90 < y < 160
    left, right, nose, mouth_left, mouth_right = faces[0].landmarks
    assert left[0] < nose[0] < right[0] and left[1] < nose[1] < mouth_left[1]


def test_large_photos_are_searched_smaller_and_boxes_come_back_in_their_pixels(
    detector: FaceDetector, astronaut: Image.Image
) -> None:
    large = astronaut.resize((2048, 2048))
    x, y = detector.detect(large)[0].center
    small_x, small_y = detector.detect(astronaut)[0].center
    assert math.hypot(x / 4 - small_x, y / 4 - small_y) < 6


@pytest.mark.parametrize("size", [(8, 8), (20, 20), (21, 21), (64, 64), (24, 1500), (3000, 22), (1, 4000)])
def test_pictures_of_nobody_have_no_faces(detector: FaceDetector, size: tuple[int, int]) -> None:
    assert detector.detect(Image.new("RGB", size, (40, 90, 160))) == []


def test_noise_does_not_break_the_detector(detector: FaceDetector) -> None:
    generator = np.random.default_rng(0)
    for size in ((40, 40), (64, 48), (30, 200)):
        noise = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        assert all(face.area >= 0 for face in detector.detect(noise))


def test_face_goes_through_json() -> None:
    face = Face((1.25, 2.5, 30.0, 40.75), ((10.5, 12.0), (20.0, 12.0)), 0.875)
    assert Face.from_json(face.as_json()) == face


def test_five_points_from_sixty_eight() -> None:
    points = [(float(index), float(2 * index)) for index in range(68)]
    face = face_from_68(points, scale=0.5)
    assert face.landmarks == ((19.25, 38.5), (22.25, 44.5), (15.0, 30.0), (24.0, 48.0), (27.0, 54.0))
    assert face.box[0] == 0 and face.box[2:] == (33.5, 67.0) and face.box[1] < 0


@pytest.mark.parametrize("points", [[], [(1, 2)] * 67, [(float("nan"), 1.0)] * 68, [(float("inf"), 1.0)] * 68])
def test_what_is_no_68_points_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError):
        face_from_68(points)


def test_the_box_from_five_points_is_where_mtcnn_puts_it(detector: FaceDetector, astronaut: Image.Image) -> None:
    found = detector.detect(astronaut)[0]
    made = face_from_5(found.landmarks)
    assert _overlap(found, made) > 0.6
    with pytest.raises(ValueError):
        face_from_5([(3.0, 3.0)] * 5)


def _overlap(a: Face, b: Face) -> float:
    """Intersection over union."""
    common = Face(
        (max(a.box[0], b.box[0]), max(a.box[1], b.box[1]), min(a.box[2], b.box[2]), min(a.box[3], b.box[3]))
    ).area
    return common / (a.area + b.area - common)
