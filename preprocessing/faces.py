"""Faces: what the sources annotate, and what MTCNN finds where a source says nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from infra.mtcnn import SMALLEST_FACE, open_mtcnn

# Pixels. The pyramid of a 100-megapixel photo would not fit into memory, and its faces are large anyway.
_LARGEST_SIDE = 1600


@dataclass(frozen=True)
class Face:
    """A face in pixels of the upright picture: box [x1, y1, x2, y2] and five points.

    The points are left eye, right eye, nose, left and right corner of the mouth as the viewer sees them: the order of
    MTCNN and of CelebA. `score` is the detector's probability, 1.0 for an annotation. `quad`: the corners of FFHQ's
    aligned square in a picture in the wild (upper left, lower left, lower right, upper right), () where unknown.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...] = ()
    score: float = 1.0
    quad: tuple[tuple[float, float], ...] = ()

    @property
    def area(self) -> float:
        return max(self.box[2] - self.box[0], 0.0) * max(self.box[3] - self.box[1], 0.0)

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def as_json(self) -> dict[str, Any]:
        return {
            "box": [round(value, 2) for value in self.box],
            "landmarks": [[round(x, 2), round(y, 2)] for x, y in self.landmarks],
            "score": round(self.score, 5),
        } | ({"quad": [[round(x, 2), round(y, 2)] for x, y in self.quad]} if self.quad else {})

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Face":
        x1, y1, x2, y2 = (float(value) for value in data["box"])
        points = tuple((float(x), float(y)) for x, y in data.get("landmarks", ()))
        quad = tuple((float(x), float(y)) for x, y in data.get("quad", ()))
        return Face((x1, y1, x2, y2), points, float(data.get("score", 1.0)), quad)


def face_from_68(points: Sequence[Sequence[float]], scale: float = 1.0) -> Face:
    """A `Face` from the 68 landmarks of iBUG 300-W, which FFHQ uses; ValueError where they are not 68 finite points."""
    if len(points) != 68:
        raise ValueError(f"{len(points)} landmarks instead of 68")
    xy = [(float(point[0]) * scale, float(point[1]) * scale) for point in points]
    if not all(abs(value) < 1e6 for pair in xy for value in pair):  # NaN fails the comparison too
        raise ValueError("a landmark is not a finite number of pixels")
    left, right = _mean(xy[36:42]), _mean(xy[42:48])
    x1, x2 = min(x for x, _ in xy), max(x for x, _ in xy)
    y1, y2 = min(y for _, y in xy), max(y for _, y in xy)
    # The points end at the eyebrows; detectors' boxes hold the forehead too.
    return Face((x1, y1 - 0.2 * (y2 - y1), x2, y2), (left, right, xy[30], xy[48], xy[54]))


def face_from_5(points: Sequence[tuple[float, float]]) -> Face:
    """A `Face` from two eyes, nose and two mouth corners; the box has the proportions that MTCNN's boxes have.

    ValueError where the eyes and mouth fall together.
    """
    left, right, _, mouth_left, mouth_right = points
    eyes, mouth = _mean([left, right]), _mean([mouth_left, mouth_right])
    size = max(_distance(left, right), _distance(eyes, mouth))
    if not size > 0:
        raise ValueError("the five landmarks fall together")
    x, y = _mean([eyes, mouth])
    return Face((x - 1.1 * size, y - 1.45 * size, x + 1.1 * size, y + 1.25 * size), tuple(points))


class Detector(Protocol):
    """Finds faces; `FaceDetector` is one."""

    def detect(self, image: Image.Image) -> list[Face]:
        """All faces of an RGB picture, largest first, in its pixels."""
        ...


def missing_faces(
    image: Image.Image, known: Sequence[Mapping[str, Any]], faceless: int, detector: Detector
) -> list[dict[str, Any]]:
    """The faces, as json, that nobody annotated in a picture in which `faceless` people have none.

    Nothing is looked for where everybody has a face. A found face whose centre is in a known one, or that holds the
    known one's centre, is the same face.
    """
    if faceless <= 0:
        return []
    found = [face.as_json() for face in detector.detect(image)]
    return [face for face in found if not any(_same(face["box"], other["box"]) for other in known)]


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return holds_centre(a, b) or holds_centre(b, a)


def holds_centre(box: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the centre of the `other` box [x1, y1, x2, y2] is in the box."""
    x, y = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5


class FaceDetector:
    """facenet-pytorch's MTCNN with the settings of FastComposer's evaluation; its weights come with the package."""

    def __init__(self, device: str = "cpu") -> None:
        self._mtcnn = open_mtcnn(device)

    def detect(self, image: Image.Image) -> list[Face]:
        """All faces of an RGB picture, largest first, in its pixels; empty where there are none."""
        scale = min(1.0, _LARGEST_SIDE / max(image.size))
        small = image
        if scale < 1.0:
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            small = image.resize(size, Image.Resampling.BOX)
        if min(small.size) <= SMALLEST_FACE:
            return []
        boxes, scores, points = self._mtcnn.detect(small.convert("RGB"), landmarks=True)
        if boxes is None:
            return []
        back = (image.width / small.width, image.height / small.height)
        faces = []
        for box, score, point in zip(boxes, scores, points, strict=True):
            x1, y1, x2, y2 = (float(value) * back[axis % 2] for axis, value in enumerate(box))
            box_inside = (max(x1, 0.0), max(y1, 0.0), min(x2, image.width), min(y2, image.height))
            marks = tuple((float(x) * back[0], float(y) * back[1]) for x, y in point)
            faces.append(Face(box_inside, marks, float(score)))
        return sorted(faces, key=lambda face: (-face.area, face.box))
