"""The preset sdxl from photos to a release and to pictures, on small stand-ins of its models: its own numbers.

The photos are not all square, so that SDXL's sizes and cuts are told apart. The flows' bodies run in this process.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from evaluation import protocol
from flows import (
    applications,
    evaluation_pictures,
    evaluation_scores,
    evaluation_split,
    ingest,
    model_stages,
    train,
    training_loop,
)
from flows import retrain as dag
from flows.applications import Release
from flows.evaluation_pictures import read_pictures
from flows.generate import generate
from flows.painting import from_png
from flows.run import Run, check_inputs
from flows.training_job import picture_key
from infra.doctor import diagnose
from infra.settings import Settings, load_settings
from moa_model import Batch, MoATrainingModule
from preprocessing.catalog import load_shard
from preprocessing.shards import decode_npy, decode_picture, read_tar
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from tests.sd15_models import IMAGE_DIM, TOKENS
from tests.sdxl_models import FIRST, POOLED_DIM, SECOND, write_sdxl_models
from tests.tiny_world import write_aligned_people
from tests.without_ray import fit, map_shards

PIXELS = 128
PHOTOS = {"square": (160, 160), "wide": (160, 200), "tall": (240, 160)}  # height and width
DRAWN = ("a {word} holding a glass of wine", "a {word} on the beach")
FLOWS = ("ingest", "duplicates", "caption", "segment", "shard", "train", "evaluate", "publish")


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where things are, and how many: no other setting is changed."""
    world = tmp_path_factory.mktemp("sdxl")
    return write_sdxl_models(world / "models") | {
        "storage.root": str(world / "store"),
        "ingest.source": f"folder:{_write_photos(world / 'photos')}",
        "evaluate.source": f"celeba:{write_aligned_people(world / 'celeba')}",
        "ingest.pixels": str(PIXELS),
        "ingest.min_side": "64",
        # Random models are sure of nothing and their masks are anywhere; MTCNN knows no faces of paper.
        "binding.margin": "0.0",
        "filter.find_faces": "false",
        "filter.need_face": "false",
        "filter.min_face": "0.0",
        "filter.min_face_on_mask": "0.0",
        "filter.min_sharpness": "0.0",
        "filter.max_cut": "1.0",
        "train.steps": "2",
        "train.batch_size": "4",
        "train.pictures_every": "2",
        "train.pictures_people": "1",
        "train.workers": "1",
        "train.micro_batch_size": "3",  # a batch in two pieces, as the preset's
        "train.loader_workers": "0",  # so that this process sees what is trained on
        "evaluate.subjects": "2",
        "evaluate.seeds": "[11, 12]",
        "evaluate.inference_steps": "2",
    }


@pytest.fixture(scope="module")
def settings(changes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings("sdxl", tmp_path_factory.mktemp("workspace"), changes)


@pytest.fixture(scope="module")
def seen() -> SimpleNamespace:
    """What the training's worker was made of and what it was given."""
    return SimpleNamespace(module=None, batches=[], autocast=set(), passes=[])


@pytest.fixture(scope="module")
def journey(settings: Settings, seen: SimpleNamespace) -> Iterator[dag.Journey]:
    """`moa retrain`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_V2_ENABLED", "1")
        for module in (ingest, model_stages, evaluation_pictures, evaluation_scores, evaluation_split):
            patch.setattr(module, "map_shards", map_shards)
        for name in FLOWS:
            patch.setattr(dag, name, getattr(dag, name).fn)
        patch.setattr(train, "fit", fit)
        patch.setattr(training_loop, "MoATrainingModule", _watched(seen))
        patch.setattr(training_loop, "begin_pass", seen.passes.append)
        cells = protocol.cells
        patch.setattr(protocol, "cells", lambda *arguments: [one for one in cells(*arguments) if _is_drawn(one)])
        yield dag.retrain.fn(settings)


def test_the_paper_is_followed_and_what_differs_is_the_bases_size() -> None:
    sd15, sdxl = load_settings("sd15"), load_settings("sdxl")
    differing = {
        f"{group}.{name}"
        for group in ("ingest", "near_duplicates", "filter", "binding", "shard", "train", "evaluate", "publish")
        for name, value in getattr(sd15, group).model_dump().items()
        if value != getattr(sdxl, group).model_dump()[name]
    }
    assert differing == {
        *("ingest.pixels", "ingest.min_side", "ingest.photos_per_shard"),
        *("shard.max_photos", "shard.batch_size", "evaluate.batch_size"),
        *("train.micro_batch_size", "train.frozen_precision", "train.activation_checkpointing"),
        *("train.checkpoint_every", "train.shuffle_shards", "train.cache_mb", "train.loader_workers"),
    }
    assert sdxl.models.clip == sd15.models.clip and sdxl.models.base.revision
    assert sdxl.ingest.pixels == 1024 and sdxl.train.cache_mb * 10**6 > 70_000 * 1.24e6


def test_everything_is_found_before_anything_starts(settings: Settings) -> None:
    check_inputs(settings)
    checks = {check.name: check for check in diagnose(settings)}
    wanted = [name for name in checks if name.startswith("model ")] + ["ingest.source", "evaluate.source", "storage"]
    assert len(wanted) == 10 and [checks[name].detail for name in wanted if not checks[name].ok] == []


def test_photos_become_samples_with_both_encoders_states(settings: Settings, journey: dag.Journey) -> None:
    run = Run(settings)
    (row,) = run.training_shards()
    samples = list(read_tar(load_shard(run.store, row)))
    assert len(samples) == len(PHOTOS)
    for sample in samples:
        people = len(sample.json()["subjects"])
        assert people >= 1 and decode_picture(sample.parts["jpg"]).size == (PIXELS, PIXELS)
        arrays = {name: decode_npy(data).shape for name, data in sample.parts.items() if name.endswith(".npy")}
        assert arrays == {
            "moments.npy": (8, PIXELS // 8, PIXELS // 8),
            "text.npy": (TOKENS, FIRST + SECOND),
            "pooled.npy": (POOLED_DIM,),
            "image_embeds.npy": (people, 6, IMAGE_DIM),
        }


def test_training_tells_sdxl_the_truth(settings: Settings, journey: dag.Journey, seen: SimpleNamespace) -> None:
    """Each sample's own size and cut, zeros for the empty prompt, the preset's precisions and recomputation."""
    run = Run(settings)
    (row,) = run.training_shards()
    true = set()
    for sample in read_tar(load_shard(run.store, row)):
        about = sample.json()
        left, top = (round(edge * PIXELS / 160) for edge in about["crop"][:2])  # every photo's shorter side is 160
        true.add((*PHOTOS[Path(about["origin"]).stem], top, left, PIXELS, PIXELS))
    assert {tuple(map(int, one)) for batch in seen.batches for one in batch.time_ids.tolist()} == true
    assert len(true) == 3 and any(top for _, _, top, *_ in true) and any(left for *_, left, _, _ in true)
    for batch in seen.batches:
        assert batch.time_ids.dtype == torch.float32 and batch.pooled.shape == (len(batch), POOLED_DIM)
        assert not batch.null_text.any() and not batch.null_pooled.any()
    assert {len(batch) for batch in seen.batches} == {3, 1}  # pieces of four, also for the losses before and after
    assert seen.passes == ["off"] * len(seen.batches)  # each is announced to the compiler
    frozen = {p.dtype for name, p in seen.module.unet.named_parameters() if ".processor." not in name}
    assert frozen == {torch.bfloat16} and seen.autocast == {torch.bfloat16}
    assert {p.dtype for p in seen.module.adapter.parameters()} == {torch.float32}
    assert seen.module.unet.is_gradient_checkpointing
    curve = train.loss_curve(run, journey.run_id)
    grid = np.asarray(from_png(run.store.get(picture_key(journey.run_id, 2))))
    assert grid.std() > 0  # drawn on the way by the same U-Net
    assert [one["step"] for one in curve] == [2] and all(np.isfinite(value) for value in curve[0].values())


def test_the_release_is_measured_and_a_repeat_does_nothing(
    settings: Settings, journey: dag.Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings)
    assert (journey.release, journey.promoted, journey.nothing_new) == (1, False, False)
    facts = next(stage.facts for stage in journey.stages if stage.stage == "evaluate")
    assert facts["metrics"]["pictures"] == 2 * 2 * 2
    for name in ("prompt_consistency", "scene_accuracy", "object_accuracy", "background_change", "router_auc"):
        assert np.isfinite(facts["metrics"][name]["mean"]), name
    drawn = read_pictures(run, facts["folder"])
    assert {picture.size for _, picture, _ in drawn} == {(PIXELS, PIXELS)}
    run.releases.pull("1", tmp_path / "pulled")
    weights = load_file(tmp_path / "pulled" / "adapter.safetensors")
    assert weights and all(np.isfinite(one).all() for one in weights.values())
    assert dag.retrain.fn(settings).nothing_new


def test_people_are_drawn_with_the_release(settings: Settings, journey: dag.Journey, tmp_path: Path) -> None:
    """`moa generate`, with and without somebody, and with the prior's scene kept (which two steps leave to everybody:
    routers of a half see people wherever they look)."""
    photo = Path(settings.ingest.source.removeprefix("folder:")) / "wide.png"
    prompt = "a photo of a man holding roses"
    kept = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"keep_scene": True})})
    drawn = [
        np.asarray(Image.open(generate(chosen, subjects, prompt, 7, tmp_path / f"{number}.png", "1")))
        for number, (chosen, subjects) in enumerate([(settings, [photo]), (kept, [photo]), (settings, [])])
    ]
    assert {one.shape for one in drawn} == {(PIXELS, PIXELS, 3)}
    assert not np.array_equal(drawn[0], drawn[2]) and not np.array_equal(drawn[1], drawn[2])


def test_the_papers_applications_run_on_it(settings: Settings, journey: dag.Journey) -> None:
    release = Release(settings, "1")
    photos = [Path(settings.ingest.source.removeprefix("folder:")) / f"{name}.png" for name in ("wide", "square")]
    sheets = [
        applications.swap(release, photos, "a man on the beach", 3),
        applications.swap_in_photo(release, photos[0], photos[1], "a photo of a man and a man and a man and a man"),
        applications.time_lapse(release, photos[0], "a photo of a man", "of", 2, 5).strip(),
        applications.routers(release, photos[0], "a photo of a man", 3),
    ]
    assert all(sheet.width > PIXELS and np.asarray(sheet).std() > 0 for sheet in sheets)


def _write_photos(folder: Path) -> Path:
    folder.mkdir()
    for number, (name, (height, width)) in enumerate(PHOTOS.items()):
        draw(picture_at(0, number), max(height, width)).image.crop((0, 0, width, height)).save(folder / f"{name}.png")
    return folder


def _watched(seen: SimpleNamespace) -> type[MoATrainingModule]:
    class Watched(MoATrainingModule):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            seen.module = self

        def forward(self, batch: Batch, **options: Any) -> Any:
            seen.batches.append(batch)
            seen.autocast.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().forward(batch, **options)

    return Watched


def _is_drawn(cell: protocol.Cell) -> bool:
    words = f"{cell.word} and a {cell.partner_word}" if cell.is_pair else cell.word
    return cell.text in {template.format(word=words) for template in DRAWN}
