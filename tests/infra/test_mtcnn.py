"""One MTCNN for photos and evaluations: FastComposer's settings."""

import numpy as np
from PIL import Image
from skimage.data import astronaut

from infra.mtcnn import open_mtcnn


def test_it_has_fastcomposers_settings_and_finds_a_face() -> None:
    mtcnn = open_mtcnn()
    assert (mtcnn.image_size, mtcnn.margin, mtcnn.factor, mtcnn.min_face_size) == (160, 0, 0.709, 20)
    assert mtcnn.thresholds == [0.6, 0.7, 0.7] and mtcnn.keep_all and mtcnn.post_process
    boxes, scores = mtcnn.detect(Image.fromarray(astronaut()))
    assert len(boxes) == 1 and scores[0] > 0.99 and np.abs(boxes[0] - [178, 61, 268, 181]).max() < 20
