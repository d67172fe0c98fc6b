"""facenet-pytorch's MTCNN (Zhang et al., arXiv 1604.02878) as FastComposer sets it: one for photos and for evaluations.

Its weights come with the package.
"""

from typing import Any

SMALLEST_FACE = 20
"""Pixels; MTCNN's image pyramid is empty for pictures no larger than this."""


def open_mtcnn(device: str = "cpu") -> Any:
    """An `MTCNN` whose `detect` gives all faces of an RGB picture, the largest box first."""
    import infra.torchvision_ops  # noqa: F401  (facenet-pytorch imports torchvision)

    import torch
    from facenet_pytorch import MTCNN

    return MTCNN(
        image_size=160,
        margin=0,
        min_face_size=SMALLEST_FACE,
        thresholds=[0.6, 0.7, 0.7],
        factor=0.709,
        post_process=True,
        keep_all=True,
        device=torch.device(device),
    ).eval()
