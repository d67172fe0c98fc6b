"""Faces as the field's identity metric takes them: MTCNN (Zhang et al., arXiv 1604.02878), as FastComposer sets it.

facenet-pytorch's `MTCNN(image_size=160, margin=0, min_face_size=20, thresholds=[0.6, 0.7, 0.7], factor=0.709,
post_process=True, keep_all=True)`: all faces, the largest box first. Its weights come with the package. A face is cut
out along its box, in whole pixels, and scaled to 160 × 160 whatever its proportions (`CropRule(shape="box")` and
`FaceNetIdentity`), which gives MTCNN's own aligned crop bit for bit.
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import facenet_pytorch
from PIL import Image

from evaluation.people import Found
from infra.mtcnn import SMALLEST_FACE, open_mtcnn


class FaceLocator:
    """A `Locate` that finds faces; boxes are MTCNN's own, which may reach beyond the picture."""

    def __init__(self, device: str = "cpu") -> None:
        self._mtcnn = open_mtcnn(device)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[Found]]:
        """The faces of each picture, the largest first; picture by picture, as their sizes may differ."""
        return [self._faces(picture.convert("RGB")) for picture in pictures]

    def _faces(self, picture: Image.Image) -> list[Found]:
        if min(picture.size) <= SMALLEST_FACE:
            return []
        boxes, scores = self._mtcnn.detect(picture)
        if boxes is None:
            return []
        found = [
            Found(box=(float(x1), float(y1), float(x2), float(y2)), score=float(score))
            for (x1, y1, x2, y2), score in zip(boxes, scores, strict=True)
        ]
        # Nothing can be cut out where no whole pixel of the box is inside the picture.
        edges = [face.edges(picture) for face in found]
        return [face for face, (x1, y1, x2, y2) in zip(found, edges, strict=True) if x2 > x1 and y2 > y1]


def mtcnn_version() -> tuple[str, str]:
    """Which MTCNN this is: the package's version, and the SHA-256 of its three networks' files, one after the other."""
    folder = Path(facenet_pytorch.__file__).parent / "data"
    weights = b"".join((folder / f"{name}.pt").read_bytes() for name in ("pnet", "rnet", "onet"))
    return f"facenet-pytorch {version('facenet-pytorch')}", hashlib.sha256(weights).hexdigest()
