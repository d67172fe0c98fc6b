"""Photos to people: one mask per person from a Mask2Former-class model, numbered from left to right.

The class and mask logits are read here, not by the libraries' own post-processing: their panoptic one gives each
segment the region where it beats the other *segments*, so with people only a person swallows the background. Here
every mask is cut at its own probability first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from infra.backends import INSTALL_DETECTRON2
from infra.errors import UserError
from infra.model_files import is_hub_id, resolve
from infra.settings import ModelReference, SegmentSettings
from preprocessing.batching import Steps, in_batches

_MOST_PEOPLE = 255  # an instance map has 8 bits


@dataclass(frozen=True, slots=True)
class Person:
    """One instance: its number in the map (1 = leftmost), person probability, box [x1, y1, x2, y2] in pixels (right
    and lower edge exclusive) and area as a fraction of the picture."""

    instance: int
    score: float
    box: tuple[float, float, float, float]
    area: float

    def record(self) -> dict[str, Any]:
        """As it stands in a segmented sample's json."""
        return {**asdict(self), "box": list(self.box)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Person":
        x1, y1, x2, y2 = record["box"]
        return cls(int(record["instance"]), float(record["score"]), (x1, y1, x2, y2), float(record["area"]))


@dataclass(frozen=True, slots=True)
class People:
    """Everybody in a picture. `mask_source`: "model", or "face_box" where masks were guessed from faces."""

    instances: UInt8[np.ndarray, "h w"]
    people: tuple[Person, ...]
    mask_source: str = "model"


class Segmenter(Protocol):
    """What the segment stage needs of a model."""

    @property
    def steps(self) -> Steps[Image.Image, People]:
        """`segment` of one batch, in the three steps that run beside one another."""
        ...

    def segment(self, images: Sequence[Image.Image]) -> list[People]:
        """The people in each RGB picture; a picture without people has an empty tuple and a map of zeros."""
        ...


def open_segmenter(reference: ModelReference, settings: SegmentSettings) -> Segmenter:
    """Load the model that `reference.backend` names; UserError for an unknown one."""
    if reference.backend not in SEGMENTERS:
        raise UserError(f"Unknown segmenter backend {reference.backend!r}: choose one of {', '.join(SEGMENTERS)}.")
    return SEGMENTERS[reference.backend](reference, settings)


def separate_people(
    class_logits_QC: Float[Tensor, "queries classes_and_none"],
    mask_logits_QHW: Float[Tensor, "queries h w"],
    person_labels: Sequence[int],
    settings: SegmentSettings,
) -> People:
    """Mask2Former's two outputs for one picture, the masks already at its size, as people who do not overlap.

    A query is a person if the person classes' probability is above `score_threshold`; its mask is where its own
    probability is above `mask_threshold`. A pixel wanted by several goes to the larger class x mask probability.
    Whoever keeps less than `overlap_threshold` of the mask is a duplicate or a fragment: the worst goes, the pixels
    are shared out anew, until none is left (dropping all at once would leave the winners with holes).
    """
    height, width = mask_logits_QHW.shape[1:]
    score_Q = _person_score(class_logits_QC, person_labels)
    chosen = score_Q > settings.score_threshold
    score_P, prob_PHW = score_Q[chosen], mask_logits_QHW[chosen].float().sigmoid()
    wanted_PHW = prob_PHW > settings.mask_threshold
    alive = [i for i, any_pixel in enumerate(wanted_PHW.flatten(1).any(1).tolist()) if any_pixel]
    owner_HW = torch.full((height, width), -1)
    while alive:
        owner_HW = _owners(alive, score_P, prob_PHW, wanted_PHW)
        kept = {i: float((owner_HW == i).sum() / wanted_PHW[i].sum()) for i in alive}
        worst = min(alive, key=lambda i: kept[i])
        if kept[worst] >= settings.overlap_threshold:
            break
        alive.remove(worst)
    masks = [((owner_HW == i).cpu().numpy(), float(score_P[i])) for i in alive]
    return number_people([(mask, score) for mask, score in masks if mask.mean() >= settings.min_area], (height, width))


def number_people(
    masks: Sequence[tuple[Bool[np.ndarray, "h w"], float]], size: tuple[int, int], mask_source: str = "model"
) -> People:
    """Masks with scores as one map, numbered by the mask's centre from left to right; `size` is (height, width)."""
    if len(masks) > _MOST_PEOPLE:
        masks = sorted(masks, key=lambda item: -int(item[0].sum()))[:_MOST_PEOPLE]
    instances = np.zeros(size, np.uint8)
    people = []
    placed = [(np.nonzero(mask), mask, score) for mask, score in masks]
    placed.sort(key=lambda item: float(item[0][1].mean()))
    for number, ((rows, columns), mask, score) in enumerate(placed, start=1):
        instances[mask] = number
        box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        people.append(Person(number, round(score, 6), box, round(float(mask.mean()), 6)))
    return People(instances, tuple(people), mask_source)


def people_from_faces(faces: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> People:
    """A head-and-shoulders region per face, for pictures in which the model finds nobody; `size` is (height, width).

    Proportions of a portrait: the head is 1.4 faces wide and 1.6 high, the shoulders are 3 faces wide and reach 2 faces
    below the chin. The larger face is in front.
    """
    height, width = size
    owner = np.zeros(size, np.uint8)
    ordered = sorted(faces, key=lambda face: (face["box"][2] - face["box"][0]) * (face["box"][3] - face["box"][1]))
    for number, face in enumerate(ordered[-_MOST_PEOPLE:], start=1):
        x1, y1, x2, y2 = face["box"]
        face_width, face_height, middle = x2 - x1, y2 - y1, (x1 + x2) / 2
        region = Image.new("1", (width, height))
        draw = ImageDraw.Draw(region)
        head = (middle - 0.7 * face_width, y1 - 0.4 * face_height, middle + 0.7 * face_width, y2 + 0.2 * face_height)
        shoulders = (middle - 1.5 * face_width, y2, middle + 1.5 * face_width, y2 + 2 * face_height)
        if min(face_width, face_height) <= 0:
            continue
        draw.ellipse(head, fill=1)
        draw.rounded_rectangle(shoulders, radius=0.5 * min(face_width, face_height), fill=1)
        owner[np.array(region)] = number
    masks = []
    for number, face in enumerate(ordered[-_MOST_PEOPLE:], start=1):
        if (owner == number).any():
            masks.append((owner == number, float(face.get("score") or 0.0)))
    return number_people(masks, size, "face_box")


class TransformersSegmenter:
    """`Mask2FormerForUniversalSegmentation` and its image processor from a folder or the hub, safetensors only."""

    def __init__(self, reference: ModelReference, settings: SegmentSettings) -> None:
        import infra.torchvision_ops  # noqa: F401, I001  # before transformers
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        where, arguments = resolve(reference, "segmenter")
        self._settings = settings
        self._processor = AutoImageProcessor.from_pretrained(where, **arguments)
        model = Mask2FormerForUniversalSegmentation.from_pretrained(where, use_safetensors=True, **arguments)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)
        self._person_labels = [int(i) for i, label in model.config.id2label.items() if label.lower() == "person"]
        if not self._person_labels:
            raise UserError(f"The segmenter {reference.location!r} has no class 'person': choose one trained on COCO.")

    @property
    def steps(self) -> Steps[Image.Image, People]:
        return Steps(self._run, self._collate, self._read)

    def segment(self, images: Sequence[Image.Image]) -> list[People]:
        return in_batches(self.steps, images, self._settings.batch_size)

    def _collate(self, images: list[Image.Image]) -> Any:
        return self._processor(images=images, return_tensors="pt").to(self._device)

    @torch.inference_mode()
    def _run(self, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self._model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
        # Not the pictures and hidden states: they would take the next batch's memory.
        return inputs["pixel_mask"], outputs.class_queries_logits, outputs.masks_queries_logits

    @torch.inference_mode()
    def _read(self, images: list[Image.Image], made: tuple[Tensor, Tensor, Tensor]) -> list[People]:
        pixel_mask_BHW, classes_BQC, masks_BQHW = made
        heights, widths = (pixel_mask_BHW.any(axis).sum(1).tolist() for axis in (2, 1))
        # Enlarging a mask costs more than all else here, and of 100 or 200 queries few are people.
        score_BQ = _person_score(classes_BQC, self._person_labels)
        likely_BQ = score_BQ > self._settings.score_threshold
        likely_BQ.scatter_(1, score_BQ.argmax(1, keepdim=True), True)  # none at all cannot be enlarged
        sizes = [(*size, image.height, image.width) for *size, image in zip(heights, widths, images, strict=True)]
        found, padded = [], tuple(pixel_mask_BHW.shape[-2:])
        for (high, wide, *size), group in groupby(range(len(images)), key=sizes.__getitem__):
            rows = list(group)  # of the same size: together, for many small operations hold the model up
            likely = likely_BQ[rows]
            full = _to_picture(masks_BQHW[rows][likely], padded, (high, wide), (size[0], size[1]))
            for row, masks in zip(rows, full.split(likely.sum(1).tolist()), strict=True):
                classes = classes_BQC[row, likely_BQ[row]]
                found.append(separate_people(classes, masks, self._person_labels, self._settings))
        return found


class Detectron2Segmenter:
    """The original Mask2Former code on detectron2, one picture at a time.

    `reference.location` is a folder with `config.yaml` (such as maskformer2_swin_large_IN21k_384_bs16_100ep with its
    bases merged, as `cfg.dump()` writes it) and `model.safetensors` (the published .pkl converted once: nothing is
    unpickled here).
    """

    def __init__(self, reference: ModelReference, settings: SegmentSettings) -> None:
        try:
            from detectron2.config import get_cfg
            from detectron2.data import MetadataCatalog
            from detectron2.data.transforms import ResizeShortestEdge
            from detectron2.modeling import build_model
            from detectron2.projects.deeplab import add_deeplab_config
            from detectron2.structures import ImageList
            from mask2former import add_maskformer2_config
        except ImportError as error:
            raise UserError(
                f"The detectron2 segmenter needs detectron2 and Mask2Former ({error}): {INSTALL_DETECTRON2}, or "
                "choose the backend 'transformers'."
            ) from error
        from safetensors.torch import load_file

        folder = None if is_hub_id(reference) else Path(resolve(reference, "segmenter")[0])
        if folder is None or not (folder / "config.yaml").is_file() or not (folder / "model.safetensors").is_file():
            raise UserError(
                f"The detectron2 segmenter {reference.location!r} must be a folder with config.yaml and "
                "model.safetensors: convert the published checkpoint once and set models.segmenter.location."
            )
        configuration = get_cfg()
        add_deeplab_config(configuration)
        add_maskformer2_config(configuration)
        configuration.merge_from_file(str(folder / "config.yaml"))
        configuration.MODEL.WEIGHTS = ""
        configuration.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        self._settings = settings
        self._model = build_model(configuration).eval()
        self._model.load_state_dict(load_file(folder / "model.safetensors"))
        self._resize = ResizeShortestEdge(configuration.INPUT.MIN_SIZE_TEST, configuration.INPUT.MAX_SIZE_TEST)
        self._bgr = configuration.INPUT.FORMAT == "BGR"
        self._pad: Callable[[list[Tensor], int], Any] = ImageList.from_tensors
        # In COCO's panoptic metadata the things, people among them, are the first classes.
        things = MetadataCatalog.get(configuration.DATASETS.TEST[0]).thing_classes
        self._person_labels = [things.index("person")]

    @property
    def steps(self) -> Steps[Image.Image, People]:
        return Steps(self.segment)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image]) -> list[People]:
        return [self._segment_one(image) for image in images]

    def _segment_one(self, image: Image.Image) -> People:
        pixels = np.asarray(image.convert("RGB"))
        pixels = pixels[:, :, ::-1] if self._bgr else pixels
        resized = self._resize.get_transform(pixels).apply_image(pixels)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1))).float().to(self._model.device)
        normalised = (tensor - self._model.pixel_mean) / self._model.pixel_std
        batch = self._pad([normalised], self._model.size_divisibility)
        outputs = self._model.sem_seg_head(self._model.backbone(batch.tensor))
        padded, valid = tuple(batch.tensor.shape[-2:]), batch.image_sizes[0]
        mask_logits = _to_picture(outputs["pred_masks"][0], padded, valid, (image.height, image.width))
        return separate_people(outputs["pred_logits"][0], mask_logits, self._person_labels, self._settings)


SEGMENTERS: dict[str, Callable[[ModelReference, SegmentSettings], Segmenter]] = {
    "transformers": TransformersSegmenter,
    "detectron2": Detectron2Segmenter,
}


def _person_score(
    class_logits: Float[Tensor, "*batch queries classes_and_none"], person_labels: Sequence[int]
) -> Float[Tensor, "*batch queries"]:
    """Each query's probability to be a person."""
    return class_logits.float().softmax(-1)[..., list(person_labels)].sum(-1)


def _owners(
    alive: Sequence[int],
    score_P: Float[Tensor, " people"],
    prob_PHW: Float[Tensor, "people h w"],
    wanted_PHW: Bool[Tensor, "people h w"],
) -> Tensor:
    """Per pixel the person with the largest class x mask probability among those who want it, -1 for nobody."""
    if len(alive) == 1:
        return torch.where(wanted_PHW[alive[0]], alive[0], -1)
    index = torch.tensor(list(alive), device=prob_PHW.device)
    claim = torch.where(wanted_PHW[index], score_P[index, None, None] * prob_PHW[index], -1.0)
    best, who = claim.max(0)
    return torch.where(best >= 0, index[who], -1)


def _to_picture(
    logits_QHW: Float[Tensor, "queries h w"], padded: tuple[int, ...], valid: tuple[int, ...], size: tuple[int, int]
) -> Float[Tensor, "queries height width"]:
    """Mask logits at the network's stride as logits at the picture's (height, width), the padding cut away."""
    full = interpolate(logits_QHW[None].float(), size=tuple(padded), mode="bilinear", align_corners=False)
    cut = full[:, :, : valid[0], : valid[1]]
    if tuple(cut.shape[-2:]) == tuple(size):
        return cut[0]
    return interpolate(cut, size=size, mode="bilinear", align_corners=False)[0]
