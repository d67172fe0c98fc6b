"""Every stage of the preset sd15 on small stand-ins: its own numbers and code paths, an S3 server, FaceNet, MTCNN.

FFHQ's 1024 pixels and CelebA's 178 × 218 come in; the models are small, the steps few, and pictures have half the
preset's side. The stages' bodies run in this process: what Ray distributes is called here, after the same pickling.
"""

import hashlib
import io
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from evaluation import protocol
from evaluation.groups import group_tables
from evaluation.scores import Scores
from flows import (
    evaluate,
    evaluation_pictures,
    evaluation_scores,
    evaluation_split,
    ingest,
    model_stages,
    train,
    training_loop,
    training_samples,
)
from flows.caption import caption
from flows.evaluation_pictures import read_pictures
from flows.evaluation_scores import SCORES, check_references
from flows.near_duplicates import duplicates
from flows.painting import from_png
from flows.publish import publish
from flows.run import Run, StageResult, check_inputs
from flows.segment import segment
from flows.shard import shard
from infra.doctor import diagnose
from infra.errors import UserError
from infra.settings import Settings, load_settings
from infra.storage import S3Store
from moa_model import MoATrainingModule
from preprocessing.catalog import load_shard
from preprocessing.shards import decode_npy, decode_picture, read_tar
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from tests.infra.conftest import s3_address  # noqa: F401  # a fixture
from tests.sd15_models import IMAGE_DIM, TOKENS, write_sd15_models
from tests.tiny_models import TEXT_DIM
from tests.tiny_world import write_aligned_people, write_photos
from tests.without_ray import fit, map_shards

PHOTOS = 4
PIXELS = 256  # the preset's 512 take a minute longer
# Of the 40 prompts: one that names an object and one that names a scene.
DRAWN = ("a {word} holding a glass of wine", "a {word} on the beach")


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory, s3_address: str) -> dict[str, str]:  # noqa: F811
    """Where things are, and how many: no other setting is changed."""
    world = tmp_path_factory.mktemp("sd15")
    bucket = f"sd15-{secrets.token_hex(6)}"
    boto3.client("s3", endpoint_url=s3_address).create_bucket(Bucket=bucket)
    return write_sd15_models(world / "models") | {
        "storage.root": f"s3://{bucket}/some/where",
        "storage.endpoint_url": s3_address,
        "ingest.source": f"ffhq:{write_photos(world / 'ffhq', PHOTOS, pixels=1024)}",
        "evaluate.source": f"celeba:{write_aligned_people(world / 'celeba')}",
        "ingest.pixels": str(PIXELS),
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
        "train.loader_workers": "0",  # so that this process sees what is drawn
        "train.pictures_every": "2",
        "train.pictures_people": "1",
        "train.pictures_prompts": "2",
        "evaluate.subjects": "2",
        "evaluate.seeds": "[11, 12]",
        "evaluate.inference_steps": "2",
    }


@pytest.fixture(scope="module")
def settings(changes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings("sd15", tmp_path_factory.mktemp("workspace"), changes)


@pytest.fixture(scope="module")
def trained() -> SimpleNamespace:
    """What the training's worker was made of, as the tests below look at it."""
    return SimpleNamespace(module=None, rates=None, drawn=[])


@pytest.fixture(scope="module")
def stages(settings: Settings, trained: SimpleNamespace) -> Iterator[dict[str, StageResult]]:
    """The stages, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_V2_ENABLED", "1")
        for module in (ingest, model_stages, evaluation_pictures, evaluation_scores, evaluation_split):
            patch.setattr(module, "map_shards", map_shards)
        patch.setattr(train, "fit", fit)
        patch.setattr(training_loop, "MoATrainingModule", _watched(trained))
        patch.setattr(training_samples, "draw", _noting(training_samples.draw, trained.drawn))
        cells = protocol.cells
        patch.setattr(protocol, "cells", lambda *arguments: [one for one in cells(*arguments) if _is_drawn(one)])
        prepared: Sequence[Any] = (ingest.ingest, duplicates, caption, segment, shard)
        flows: Sequence[Any] = (*prepared, train.train, evaluate.evaluate, publish)
        yield {flow.name: flow.fn(settings) for flow in flows}


def test_the_numbers_are_the_papers() -> None:
    settings = load_settings("sd15")
    options = settings.train
    assert (options.steps, options.batch_size, options.learning_rate) == (40_000, 128, 1e-5)
    assert (options.max_timestep, options.condition_dropout, options.router_blocks) == (800, 0.1, "middle")
    assert options.lambda_object == 1e-4 and options.timestep_exponent == 1  # uniform
    # The paper's weight is on a sum over the router map's 64 × 64 pixels, ours on their mean.
    assert options.lambda_router == pytest.approx(1e-4 * 64 * 64, rel=0.01)
    assert (settings.ingest.pixels, settings.shard.reference_pixels) == (512, 224)
    assert (settings.evaluate.inference_steps, settings.evaluate.prior_only_above) == (50, 800)


def test_only_places_and_amounts_are_changed(settings: Settings, changes: dict[str, str]) -> None:
    published = load_settings("sd15", settings.workspace)
    assert _differences(published.model_dump(), settings.model_dump()) == set(changes)


def test_everything_is_found_before_anything_starts(settings: Settings) -> None:
    check_inputs(settings)
    checks = {check.name: check for check in diagnose(settings)}
    wanted = [name for name in checks if name.startswith("model ")] + ["ingest.source", "evaluate.source", "storage"]
    assert len(wanted) == 10 and "none is chosen" in checks["model safety"].detail
    assert [checks[name].detail for name in wanted if not checks[name].ok] == []


def test_missing_facenet_weights_are_told_before_anything_starts(settings: Settings, tmp_path: Path) -> None:
    identity = settings.models.identity.model_copy(update={"location": str(tmp_path / "facenet-vggface2")})
    without = settings.model_copy(update={"models": settings.models.model_copy(update={"identity": identity})})
    for _ in ("no folder", "an empty folder"):
        with pytest.raises(UserError, match="evaluation/README.md"):
            check_inputs(without)
        (check,) = [check for check in diagnose(without) if check.name == "model identity"]
        assert not check.ok and "evaluation/README.md" in check.detail
        (tmp_path / "facenet-vggface2").mkdir(exist_ok=True)


def test_photos_become_training_samples_on_s3(settings: Settings, stages: dict[str, StageResult]) -> None:
    run = Run(settings)
    assert isinstance(run.store, S3Store)
    counts = run.catalog.counts(run.fingerprints)
    assert (counts.seen, counts.kept) == (PHOTOS + 2, PHOTOS)
    assert counts.refused == {"duplicate": 1, "not_an_image": 1}
    (row,) = run.training_shards()
    samples = list(read_tar(load_shard(run.store, row)))
    assert len(samples) == row.samples == PHOTOS
    for sample in samples:
        about = sample.json()
        people = len(about["subjects"])
        assert people >= 1 and about["mask_source"] == "model" and about["size"] == [1024, 1024]
        assert decode_picture(sample.parts["jpg"]).size == (PIXELS, PIXELS)
        arrays = [decode_npy(sample.parts[f"{name}.npy"]) for name in ("moments", "text", "image_embeds")]
        assert [one.shape for one in arrays] == [
            (8, PIXELS // 8, PIXELS // 8),
            (TOKENS, TEXT_DIM),
            (people, 6, IMAGE_DIM),
        ]


def test_training_is_the_papers(settings: Settings, stages: dict[str, StageResult], trained: SimpleNamespace) -> None:
    assert trained.module.blocks == set(range(2, 13)), "11 of 16 blocks are penalised"
    assert (trained.module.lambda_router, trained.module.lambda_object) == (0.41, 1e-4)
    assert trained.module.scheduler.config.prediction_type == "epsilon"
    assert trained.rates == (1e-5, 1.0)
    steps = [0, 1] * 3  # between the losses before and after, on the same batches
    assert trained.drawn == [
        (0, range(4 * step, 4 * step + 4), (4, PIXELS // 8, PIXELS // 8), 800, 0.1, 1.0) for step in steps
    ]
    assert trained.precision == {torch.bfloat16}
    curve = train.loss_curve(Run(settings), stages["train"].facts["run_id"])
    assert [row["step"] for row in curve] == [2] and all(np.isfinite(value) for value in curve[0].values())


def test_somebody_not_trained_on_is_drawn_on_the_way(settings: Settings, stages: dict[str, StageResult]) -> None:
    store, run_id = Run(settings).store, stages["train"].facts["run_id"]
    assert store.list(f"runs/{run_id}/pictures/") == [f"runs/{run_id}/pictures/step-000002.png"]
    grid = from_png(store.get(f"runs/{run_id}/pictures/step-000002.png"))
    assert grid.width == 3 * (PIXELS + 8) + 8, "somebody's photo, and two prompts"


def test_the_protocol_measures_with_facenet(settings: Settings, stages: dict[str, StageResult]) -> None:
    metrics = stages["evaluate"].facts["metrics"]
    assert metrics["pictures"] == 2 * 2 * 2 and metrics["subjects"] == 2
    assert metrics["pair_pictures"] == 2 and metrics["pairs"] == 1
    # Two photos of one person have been compared; in what random models draw there is no face to compare.
    assert metrics["identity_real_photos"]["mean"] > 0 and metrics["identity"]["mean"] == 0
    assert metrics["faces_missing"] == 8 and metrics["pair_identity"]["mean"] == 0
    for name in ("prompt_consistency", "scene_accuracy", "object_accuracy", "background_change", "router_auc"):
        assert metrics[name] is not None and np.isfinite(metrics[name]["mean"]), name
    drawn = read_pictures(Run(settings), stages["evaluate"].facts["folder"])
    assert {cell.text.replace(cell.word, "{word}") for cell, _, _ in drawn if not cell.is_pair} == set(DRAWN)
    assert {cell.text for cell, _, _ in drawn if cell.is_pair} == {"a man and a man on the beach"}
    assert {picture.size for _, picture, _ in drawn} == {(PIXELS, PIXELS)}


def test_every_instrument_is_named_with_its_digest(settings: Settings, stages: dict[str, StageResult]) -> None:
    metrics = stages["evaluate"].facts["metrics"]
    assert metrics["perceptual_distance"] == "LPIPS 0.1 (AlexNet)" and metrics["variation"]["mean"] > 0
    records = metrics["instruments"]
    assert set(records) == {"identity", "faces", "people", "perceptual distance", "prompt consistency"}
    weights = Path(settings.models.identity.location, "vggface2.safetensors").read_bytes()
    assert records["identity"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert all(len(record["sha256"]) == 64 for record in records.values())
    said = [check["sentence"] for check in stages["evaluate"].facts["verdict"]["checks"] if check["kind"] == "pictures"]
    assert any("names no safety checker" in sentence for sentence in said)


def test_every_pictures_values_are_kept_beside_the_pictures(settings: Settings, stages: dict[str, StageResult]) -> None:
    facts = stages["evaluate"].facts
    scores = Scores.from_parquet(Run(settings).store.get(f"{facts['folder']}/{SCORES}"))
    assert len(scores.cells) == 10
    identity = [value for values in scores.column("variation").values() for value in values]
    assert np.mean(identity) == pytest.approx(facts["metrics"]["variation"]["mean"])
    assert {table.group: table.pictures for table in group_tables(scores)} == {"action": 4, "context": 6}


def test_a_reference_without_a_face_is_told_before_anything_is_drawn(
    settings: Settings, stages: dict[str, StageResult]
) -> None:
    paper = io.BytesIO()
    draw(picture_at(99, 0), 218).image.save(paper, "PNG")
    somebody = {"name": "7", "word": "man", "photos": [paper.getvalue()], "original": paper.getvalue()}
    with pytest.raises(UserError, match="no face in the reference photo of 7 .*evaluate.people"):
        check_references(Run(settings), [somebody])


def test_the_release_is_on_s3_and_verified_when_pulled(
    settings: Settings, stages: dict[str, StageResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings)
    facts = stages["publish"].facts
    assert (facts["release"], facts["promoted"]) == (1, False), "random models do not pass the gate"
    assert run.releases.current("production") is None
    release = run.releases.pull("1", tmp_path / "pulled")
    assert run.settled() == release, "the same photos again are nothing new"
    config = json.loads((tmp_path / "pulled" / "adapter_config.json").read_text())
    assert config["prior_only_above"] == 800
    weights = load_file(tmp_path / "pulled" / "adapter.safetensors")
    assert weights and all(np.isfinite(one).all() for one in weights.values())
    card = run.releases.card(release)
    assert card["catalog_digest"] == run.catalog.content_digest(card["catalog_version"])
    file = run.releases.manifest(release).file("adapter.safetensors")
    assert file is not None and (tmp_path / "pulled" / "README.md").read_text().startswith("---\n")
    key = run.releases.manifest(release).key(file)
    run.store.put(key, run.store.get(key)[:-1])
    monkeypatch.setenv("MOA_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="damaged"):
        run.releases.pull("1", tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def _watched(trained: SimpleNamespace) -> type[MoATrainingModule]:
    class Watched(MoATrainingModule):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            trained.module, trained.precision = self, set()

        def forward(self, batch: Any) -> Any:
            trained.precision.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().forward(batch)

        def optimizer_groups(self, learning_rate: float, router_learning_rate_factor: float = 2.0) -> Any:
            trained.rates = (learning_rate, router_learning_rate_factor)
            return super().optimizer_groups(learning_rate, router_learning_rate_factor)

    return Watched


def _noting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return noted


def _is_drawn(cell: protocol.Cell) -> bool:
    words = f"{cell.word} and a {cell.partner_word}" if cell.is_pair else cell.word
    return cell.text in {template.format(word=words) for template in DRAWN}


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in before.items():
        if isinstance(value, dict):
            found |= _differences(value, after[name], f"{prefix}{name}.")
        elif value != after[name]:
            found.add(f"{prefix}{name}")
    return found
