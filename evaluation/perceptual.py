"""How different do two pictures look? LPIPS, or the distance between CLIP's embeddings, behind one protocol.

LPIPS (Zhang et al., arXiv 1801.03924, eq. 1), version 0.1 on AlexNet, is the published distance: 0 for the same
picture. Its trunk is torchvision's AlexNet, a download; the small heads come with the `lpips` package. The demo's tiny
pictures mean nothing to AlexNet, so there it is 1 − cosine of CLIP's image embeddings. The two are never compared: a
report names which one it was.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file

from evaluation.prompt_consistency import PromptScorer
from infra.errors import UserError
from infra.model_files import converted_file, resolve
from infra.settings import ModelReference


class PerceptualDistance(Protocol):
    """Pictures in, all distances between them out: symmetric, zeros on the diagonal."""

    name: str

    def distances(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "N N"]: ...


def open_perceptual(
    reference: ModelReference, clip_reference: ModelReference, clip: PromptScorer, device: str = "cpu"
) -> PerceptualDistance:
    """The distance that `models.perceptual` names: backend "lpips" or "clip"; `clip` serves where it names the same."""
    if reference.backend == "lpips":
        return LpipsDistance(Path(resolve(reference, "perceptual")[0]), device)
    if reference.backend == "clip":
        same = reference.location == clip_reference.location and reference.revision == clip_reference.revision
        return ClipDistance(clip if same else PromptScorer.open(reference, device, "perceptual"))
    raise UserError(
        f"models.perceptual.backend is '{reference.backend}', but a distance is 'lpips' or 'clip': set one of the two."
    )


class ClipDistance:
    """1 − cosine of CLIP's image embeddings."""

    name = "1 − cosine of CLIP's image embeddings"

    def __init__(self, clip: PromptScorer) -> None:
        self._clip = clip

    def distances(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "N N"]:
        embedded_ND = self._clip.images(pictures)
        distances_NN = 1.0 - embedded_ND @ embedded_ND.T
        np.fill_diagonal(distances_NN, 0.0)
        return distances_NN


class LpipsDistance:
    """LPIPS 0.1 on AlexNet; `trunk` is a safetensors conversion of torchvision's weights (a file, or its folder)."""

    name = "LPIPS 0.1 (AlexNet)"

    def __init__(self, trunk: Path, device: str = "cpu") -> None:
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision's older way to say that no weights are to be downloaded
            model = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
        weights = load_file(converted_file(trunk, "lpips", "perceptual"))
        # "slice2.3.weight" is torchvision's "features.3.weight".
        wanted = {name: f"features.{name.split('.', 1)[1]}" for name in model.net.state_dict()}
        if missing := sorted(set(wanted.values()) - weights.keys()):
            raise UserError(
                f"{trunk} does not hold torchvision's AlexNet ({missing[0]} is missing): convert "
                "alexnet-owt-7be5be79.pth as evaluation/README.md shows."
            )
        model.net.load_state_dict({name: weights[theirs] for name, theirs in wanted.items()})
        self._model = model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def distances(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "N N"]:
        pixels = np.stack([np.asarray(picture.convert("RGB"), np.float32) for picture in pictures])
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device) / 127.5 - 1
        rows, columns = np.triu_indices(len(pictures), k=1)
        distances_NN = np.zeros((len(pictures), len(pictures)), np.float32)
        if len(rows):
            found = self._model(scaled[rows], scaled[columns]).flatten().float().cpu().numpy()
            distances_NN[rows, columns] = distances_NN[columns, rows] = found
        return distances_NN
