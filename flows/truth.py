"""How right captions and masks are, where the source knows the truth: Paperfolk does, photographs do not."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flows.run import Run
from preprocessing.catalog import ShardRow, load_shard
from preprocessing.shards import Sample, decode_instances, read_tar


@dataclass(frozen=True)
class TruthScores:
    """`mask_iou` is a mean over the true people; a person nobody found counts 0."""

    photos: int
    people: int
    caption_exact: float
    mask_iou: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def truth_scores(run: Run) -> TruthScores | None:
    """Scores over all photos that came in and whose truth is known; None where none is."""
    root = run.photos / "ffhq"
    if run.settings.ingest.source != "paperfolk" or not (root / "truth.jsonl").is_file():
        return None
    from preprocessing.sources import paperfolk

    truth = paperfolk.read_truth(root)
    captions = {row.shard: row for row in run.shards("caption")}
    segments = {row.shard: row for row in run.shards("segment")}
    exact: list[bool] = []
    overlaps: list[float] = []
    for row in run.shards("ingest"):
        captioned = _samples(run, captions.get(row.shard))
        segmented = _samples(run, segments.get(row.shard))
        for sample in read_tar(load_shard(run.store, row)):
            about = sample.json()
            known = truth.get(str(about["origin"])) if about["source"] == "paperfolk" else None
            if known is None:
                continue
            found = captioned.get(sample.key)
            exact.append(found is not None and found.json()["caption"] == known.caption)
            side = run.settings.ingest.pixels
            wanted = _cropped(Path(known.instances_path), about["crop"], side)
            masks = segmented.get(sample.key)
            got = np.zeros_like(wanted) if masks is None else decode_instances(masks.parts["instances.png"])
            overlaps += person_overlaps(wanted, got)
    if not exact or not overlaps:
        return None
    return TruthScores(len(exact), len(overlaps), float(np.mean(exact)), float(np.mean(overlaps)))


def person_overlaps(wanted_HW: UInt8[np.ndarray, "h w"], got_HW: UInt8[np.ndarray, "h w"]) -> list[float]:
    """For each true person the best intersection over union with a found one, each found one used once."""
    from scipy.optimize import linear_sum_assignment

    true = [wanted_HW == number for number in np.unique(wanted_HW) if number]
    found = [got_HW == number for number in np.unique(got_HW) if number]
    if not true or not found:
        return [0.0] * len(true)
    overlap_TF = np.array([[(a & b).sum() / (a | b).sum() for b in found] for a in true])
    rows, columns = linear_sum_assignment(overlap_TF, maximize=True)
    matched = dict(zip(rows.tolist(), overlap_TF[rows, columns].tolist(), strict=True))
    return [matched.get(index, 0.0) for index in range(len(true))]


def _samples(run: Run, row: ShardRow | None) -> dict[str, Sample]:
    return {} if row is None else {sample.key: sample for sample in read_tar(load_shard(run.store, row))}


def _cropped(path: Path, crop: list[int], pixels: int) -> UInt8[np.ndarray, "h w"]:
    with Image.open(path) as image:
        left, top, right, bottom = crop
        cut = image.convert("L").crop((left, top, right, bottom))
    return np.asarray(cut if cut.size == (pixels, pixels) else cut.resize((pixels, pixels), Image.Resampling.NEAREST))
