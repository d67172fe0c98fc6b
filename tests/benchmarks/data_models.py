"""Caption and segment beside the bare model in them: part of `make bench-data`.

Both stages prepare and read batches beside the model, so how much of that shows depends on how long the model takes.
Measured are models of the production classes that take as long for a photo as production's do on a GPU (BLIP-2 OPT-6.7b
at 8 photos a second 125 ms, Mask2Former Swin-L at 12 a second 83 ms), on photos of production's size; and the demo's
tiny ones, beside whose few milliseconds all else is large.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from torch import nn

from infra.model_files import ZOO
from infra.settings import ModelReference, Settings
from preprocessing.captioning import open_captioner
from preprocessing.segmentation import open_segmenter
from preprocessing.shards import encode_json, write_tar
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from preprocessing.stages import caption_shard, segment_shard
from tests.benchmarks.costs import console, cpu_ratio, in_turn, wall_ratio

PIXELS = 512  # of a production photo


def models(settings: Settings, folder: Path, photos: int, rounds: int) -> dict[str, Any]:
    """ "caption_ratio", "segment_ratio" (bare ÷ ours, by the clock) and what they come from, of models as slow as
    production's; the same under "caption_demo_…" and "segment_demo_…" of the demo's, on three times the photos.

    Beside the first batch's preparation and the last one's reading no model is at work. Of production's 1,000 photos
    a shard that is nothing, of 50 it would be two per cent: hence not too few photos.
    """
    slow = settings.model_copy(
        update={
            "models": settings.models.model_copy(
                update={"captioner": _slow_captioner(folder), "segmenter": _slow_segmenter(folder)}
            ),
            "caption": settings.caption.model_copy(update={"batch_size": 4, "num_beams": 5, "max_new_tokens": 20}),
            "segment": settings.segment.model_copy(update={"batch_size": 4}),
        }
    )
    found = _beside_bare(slow, _drawn(photos, PIXELS), rounds, "{}_")
    return found | _beside_bare(settings, _drawn(3 * photos, settings.ingest.pixels), rounds, "{}_demo_")


def _beside_bare(settings: Settings, tar: bytes, rounds: int, names: str) -> dict[str, Any]:
    captioner = open_captioner(settings.models.captioner, settings.caption)
    segmenter = open_segmenter(settings.models.segmenter, settings.segment)
    found: dict[str, Any] = {}
    for stage, owner, work in (
        ("caption", captioner, lambda: caption_shard(tar, captioner, settings.caption)),
        ("segment", segmenter, lambda: segment_shard(tar, segmenter, settings.segment)),
    ):
        model = next(value for value in vars(owner).values() if isinstance(value, nn.Module))
        entrance = "generate" if stage == "caption" else "forward"
        with _recorded(model, entrance) as calls:
            work()
        photos = sum(len(next(iter(call.values()))) for call in calls)
        console.print(f"{names.format(stage)[:-1]}: {photos} photos in {len(calls)} batches")
        called = getattr(model, entrance)

        def bare(called: Callable[..., object] = called, calls: list[dict[str, Any]] = calls) -> None:
            with torch.inference_mode():
                for arguments in calls:
                    called(**arguments)

        costs, prefix = in_turn(rounds, bare=bare, ours=work), names.format(stage)
        found[f"{prefix}ratio"] = wall_ratio(costs, "bare", "ours")
        found[f"{prefix}cpu_ratio"] = cpu_ratio(costs, "bare", "ours")
        found[f"{prefix}ms"] = 1000 * min(one.cpu for one in costs["ours"]) / photos
        found[f"{prefix}bare_ms"] = 1000 * min(one.wall for one in costs["bare"]) / photos
    return found


@contextmanager
def _recorded(model: nn.Module, entrance: str) -> Iterator[list[dict[str, Any]]]:
    """The arguments with which the model is called meanwhile."""
    calls: list[dict[str, Any]] = []
    original = getattr(model, entrance)

    def recording(**arguments: Any) -> Any:
        calls.append(arguments)
        return original(**arguments)

    setattr(model, entrance, recording)
    try:
        yield calls
    finally:
        delattr(model, entrance)


def _drawn(photos: int, pixels: int) -> bytes:
    """An ingested shard of Paperfolk."""
    samples = []
    for number in range(photos):
        buffer = io.BytesIO()
        draw(picture_at(10, number), pixels).image.convert("RGB").save(buffer, "JPEG", quality=95, subsampling=0)
        samples.append((f"{number:064x}", {"jpg": buffer.getvalue(), "json": encode_json({"faces": []})}))
    return write_tar(samples)


def _slow_captioner(folder: Path) -> ModelReference:
    """BLIP-2 with random weights at 224 pixels, like the published one's eye; it speaks until it is cut off."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    place = _copied("captioner", folder, {"processor_config.json": {"size": {"height": 224, "width": 224}}})
    config = Blip2Config.from_pretrained(place)
    sight = {"image_size": 224, "patch_size": 14, "hidden_size": 256, "intermediate_size": 1024}
    config.vision_config.update({**sight, "num_hidden_layers": 12})
    config.qformer_config.update({"encoder_hidden_size": 256})
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(config).save_pretrained(place)
    return ModelReference(location=str(place))


def _slow_segmenter(folder: Path) -> ModelReference:
    """The demo's own weights on pictures of sixteen times the area: it goes on finding people, whose masks are read."""
    return ModelReference(
        location=str(
            _copied("segmenter", folder, {"preprocessor_config.json": {"size": {"height": 224, "width": 224}}})
        )
    )


def _copied(name: str, folder: Path, changes: dict[str, dict[str, Any]]) -> Path:
    """A zoo's model elsewhere, with other numbers in its files."""
    place = folder / name
    shutil.copytree(ZOO / name, place)
    for file, values in changes.items():
        path = place / file
        content = json.loads(path.read_text("utf-8"))
        content.get("image_processor", content).update(values)
        path.write_text(json.dumps(content), "utf-8")
    return place
