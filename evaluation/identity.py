"""Identity preservation (IP): is the person in the generated picture the person in the reference photo?

identity = max(0, cos(embed(person cropped from the generated picture), embed(person cropped from the reference))),
and 0 where nobody is found in the generated picture: a picture without the subject preserves no identity, and it counts
(FastComposer, arXiv 2305.10431, as its released evaluation computes it; MoA, arXiv 2404.11565, app. D).

There, and here with backend "facenet", people are faces as MTCNN finds and cuts them (`evaluation.faces`), the first
one of a picture counts, and the embedding is that of InceptionResnetV1 trained on VGGFace2 (Schroff et al., arXiv
1503.03832). With backend "transformers" people are the segmenter's and any image model embeds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file

from evaluation.people import Found
from infra.errors import UserError
from infra.model_files import converted_file, resolve, weights_needed
from infra.settings import ModelReference

GREY = (127, 127, 127)


@dataclass(frozen=True)
class CropRule:
    """How a person is cut out before being embedded: the square around the box, `margin` of its side added all round.

    `background="grey"` paints everything outside the mask (where there is one) grey, so that a scene can neither earn
    nor cost identity. `shape="box"` takes the box as it is, its edges cut to whole pixels inside the picture, which is
    how MTCNN cuts; then `margin` does nothing. An encoder's `config.json` may carry
    `"crop": {"margin": …, "background": …}`: then the crop is the one it was trained on.
    """

    margin: float = 0.05
    background: Literal["grey", "keep"] = "grey"
    shape: Literal["square", "box"] = "square"


def crop_person(image: Image.Image, person: Found | None, rule: CropRule) -> Image.Image:
    """The RGB crop of `person`; of a square, what lies outside the picture is grey. `None` = all of the picture."""
    picture = image.convert("RGB")
    if person is None:
        return picture
    if rule.background == "grey" and person.mask is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, GREY), Image.fromarray(person.mask))
    if rule.shape == "box":
        return picture.crop(person.edges(image))
    x1, y1, x2, y2 = person.box
    side = max(1, round(max(x2 - x1, y2 - y1) * (1 + 2 * rule.margin)))
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(picture, (-left, -top))
    return square


class IdentityEncoder(Protocol):
    """Crops in, one unit vector each out."""

    crop: CropRule

    def embed(self, crops: Sequence[Image.Image]) -> Float[np.ndarray, "N D"]: ...


def identity_similarity(
    generated_ND: Float[np.ndarray, "N D"], references_ND: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, " N"]:
    """Cosine of row i with row i, clamped at 0; a row of zeros (nobody found) scores 0."""
    cosine_N = (_unit(generated_ND) * _unit(references_ND)).sum(axis=1)
    return np.clip(cosine_N, 0.0, 1.0)


def embed_people(
    images: Sequence[Image.Image], people: Sequence[Sequence[Found]], encoder: IdentityEncoder, batch_size: int = 32
) -> Float[np.ndarray, "N D"]:
    """The first person of each picture as a unit vector; zeros where the picture shows nobody."""
    if not images:
        return np.zeros((0, 1), np.float32)
    first = embed_everybody(images, [found[:1] for found in people], encoder, batch_size)
    width = max((vectors_PD.shape[1] for vectors_PD in first), default=1)
    return np.stack([vectors_PD[0] if len(vectors_PD) else np.zeros(width, np.float32) for vectors_PD in first])


def embed_everybody(
    images: Sequence[Image.Image], people: Sequence[Sequence[Found]], encoder: IdentityEncoder, batch_size: int = 32
) -> list[Float[np.ndarray, "P D"]]:
    """Of each picture all its people as unit vectors, in their order; no row where the picture shows nobody."""
    crops = [
        crop_person(image, person, encoder.crop)
        for image, found in zip(images, people, strict=True)
        for person in found
    ]
    if not crops:
        return [np.zeros((0, 1), np.float32) for _ in images]
    batches = [encoder.embed(crops[start : start + batch_size]) for start in range(0, len(crops), batch_size)]
    ends = np.cumsum([len(found) for found in people])
    return np.split(np.concatenate(batches), ends[:-1])


def open_identity_encoder(reference: ModelReference, device: str = "cpu") -> IdentityEncoder:
    """The encoder that `models.identity` names: backend "transformers" or "facenet"."""
    if reference.backend == "transformers":
        return TransformersIdentity(reference, device)
    if reference.backend == "facenet":
        return FaceNetIdentity(Path(resolve(reference, "identity")[0]), device)
    raise UserError(
        f"models.identity.backend is '{reference.backend}', but an identity encoder is 'transformers' or 'facenet': "
        "set one of the two."
    )


class TransformersIdentity:
    """Any image model of transformers with a pooled output (ResNetModel in the demo) and its image processor."""

    def __init__(self, reference: ModelReference, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModel

        location, options = resolve(reference, "identity")
        extra: dict[str, Any] = dict(options)
        with weights_needed(reference, "identity"):
            self._processor = AutoImageProcessor.from_pretrained(location, **extra)
            self._model = AutoModel.from_pretrained(location, use_safetensors=True, **extra).eval().to(device)
        self._device = device
        self.crop = CropRule(**(getattr(self._model.config, "crop", None) or {}))

    @torch.inference_mode()
    def embed(self, crops: Sequence[Image.Image]) -> Float[np.ndarray, "N D"]:
        inputs = self._processor(images=[crop.convert("RGB") for crop in crops], return_tensors="pt")
        pooled = self._model(inputs["pixel_values"].to(self._device)).pooler_output
        return _unit(pooled.flatten(1).float().cpu().numpy())


class FaceNetIdentity:
    """facenet-pytorch's InceptionResnetV1, 512 dimensions, on 160 × 160 faces without margin (the paper's metric).

    The published weights are a pickle, which this project never loads: `weights` is a safetensors conversion of them
    (a file, or a folder with `vggface2.safetensors`). evaluation/README.md has the command that converts.
    """

    crop = CropRule(margin=0.0, background="keep", shape="box")

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        from facenet_pytorch import InceptionResnetV1

        state = {
            name: tensor
            for name, tensor in load_file(converted_file(weights, "facenet", "identity")).items()
            if "logits" not in name
        }
        model = InceptionResnetV1(pretrained=None, classify=False)
        # The head that classifies the training set's people is not part of the embedding.
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or any("logits" not in name for name in missing):
            raise UserError(
                f"{weights} does not hold facenet-pytorch's InceptionResnetV1 (unknown: {len(unexpected)}, missing: "
                f"{len(missing)} tensors): convert 20180402-114759-vggface2.pt as evaluation/README.md shows."
            )
        self._model = model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def embed(self, crops: Sequence[Image.Image]) -> Float[np.ndarray, "N D"]:
        resized = [np.asarray(crop.convert("RGB").resize((160, 160), Image.Resampling.BILINEAR)) for crop in crops]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()
        # The scale that the network was trained with: (x − 127.5) / 128.
        return _unit(self._model(((pixels - 127.5) / 128).to(self._device)).float().cpu().numpy())


def _unit(vectors_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(length_N1 == 0, 1.0, length_N1)
