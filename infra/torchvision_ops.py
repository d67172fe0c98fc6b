"""Import this before torchvision, transformers, diffusers or facenet_pytorch.

torchvision's compiled library fits one build of torch. Where it does not load (CUDA torchvision on CPU torch), a plain
`import torchvision` fails with "operator torchvision::nms does not exist" and takes everything that imports it along.
Here the missing operators are defined in Python instead. Where the library loads, this module does nothing.
"""

import importlib.util
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor


def nms(dets: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], iou_threshold: float) -> Int[Tensor, " kept"]:
    """Indices of the boxes kept by non-maximum suppression, best score first; boxes are [x1, y1, x2, y2].

    A box goes when its intersection over union with a better, kept one is above `iou_threshold`. The order among equal
    scores is that of the input. Raises ValueError when the shapes disagree.
    """
    if dets.ndim != 2 or dets.shape[1] != 4 or scores.ndim != 1 or len(dets) != len(scores):
        raise ValueError(f"nms wants boxes [n, 4] and scores [n], got {list(dets.shape)} and {list(scores.shape)}")
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = dets[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool, device=dets.device)
    kept = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        low = torch.maximum(boxes[i, :2], boxes[i + 1 :, :2])
        high = torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        # Multiplied out, so that two boxes without area do not divide by zero.
        alive[i + 1 :] &= overlap <= iou_threshold * (areas[i] + areas[i + 1 :] - overlap)
    return order[torch.tensor(kept, dtype=torch.int64, device=dets.device)]


def _library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision: nothing to mend, and its import says so better than we could
    for library in sorted(Path(spec.origin).parent.glob("_C*.*")):
        try:
            torch.ops.load_library(library)
            return True
        except (ImportError, OSError):
            continue
    return False


def _define_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # asked for at import only
    library.impl("nms", nms, "CompositeExplicitAutograd")

    import torchvision.ops.boxes

    # torchvision.ops.nms asks whether *all* compiled operators are there; for this one caller ours is enough.
    torchvision.ops.boxes._assert_has_ops = lambda: None
    return library


# The operators live as long as this object does; defining them twice is an error, hence the module's own memory.
_operators = None if _library_loads() else _define_operators()
