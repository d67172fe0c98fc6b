"""Pictures on the way: of people not trained on, the same every time, and without a trace in what is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flows.evaluation_people import read_people
from flows.painting import from_png, open_pipeline, to_png
from flows.run import Run
from flows.session import prepare_environment
from flows.training_job import TrainingJob, picture_key
from flows.training_pictures import TrainingPictures, share
from infra.ray_session import ray_session
from infra.settings import Settings
from infra.storage import DirectoryStore, ObjectStore
from moa_model import MoAAdapter, MoATrainingModule
from tests.faults.training_driver import train
from tests.faults.training_runs import prepare
from tests.moa_model.conftest import trained_like
from tests.tiny_models import IMAGE_DIM
from tests.tiny_world import tiny_ray, write_models, write_people

CHANGES = {"train.pictures_every": "2", "train.pictures_people": "2", "train.pictures_prompts": "2"}
TRAINING = {"train.workers": "2", "train.checkpoint_every": "4", "train.steps": "6", "train.warmup_steps": "0"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_models(root / "models")
    write_people(root / "celeba")
    return root


@pytest.fixture(scope="module")
def settings(root: Path) -> Settings:
    return prepare(root, "here", CHANGES)


@pytest.fixture
def job(settings: Settings) -> TrainingJob:
    run = Run(settings)
    return TrainingJob(settings, run.store, "r", [], None, people=tuple(read_people(run)[:2]))


@pytest.fixture
def module(settings: Settings) -> MoATrainingModule:
    pipe = open_pipeline(settings.models, "cpu")
    adapter = trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM))
    return MoATrainingModule(pipe.unet, adapter, pipe.scheduler.config)


def _open(job: TrainingJob, module: MoATrainingModule, **more: Any) -> TrainingPictures:
    options = {"continued": 0, "rank": 0, "workers": 1, "alive": lambda: None, "say": pytest.fail, **more}
    pictures = TrainingPictures.open(job, module, **options)
    assert pictures is not None
    return pictures


def _grid(pictures: TrainingPictures) -> bytes:
    drawn = pictures.draw()
    assert not isinstance(drawn, str), drawn
    return pictures.grid(drawn)


def _cells(png: bytes) -> list[list[np.ndarray]]:
    """The grid's 4 rows of 3: a prior's and a person's for each word."""
    grid = np.asarray(from_png(png)).astype(int)
    white = (grid == 255).all(-1)
    assert grid.shape[1] == 3 * 136 + 8
    tops = [row for row in range(1, len(grid)) if not white[row, 144:152].all() and white[row - 1, 144:152].all()]
    starts = [top for top in tops if top + 128 <= len(grid) and not white[top : top + 128, 150].any()]
    return [[grid[top : top + 128, left : left + 128] for left in (8, 144, 280)] for top in starts]


def test_the_grid_shows_people_beside_the_prior(job: TrainingJob, module: MoATrainingModule) -> None:
    beats: list[int] = []
    pictures = _open(job, module, alive=lambda: beats.append(1))
    first, again = _grid(pictures), _grid(pictures)
    assert first == again and len(beats) >= 4
    cells = _cells(first)
    assert len(cells) == 4, [len(row) for row in cells]
    (prior, person), other = cells[:2], cells[2:]
    assert (prior[0] == 255).all(), "the prior has no reference"
    reference = from_png(job.people[0]["photos"][0]).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.array_equal(person[0], np.asarray(reference))
    for mine, priors in zip(person[1:], prior[1:], strict=True):
        assert not np.array_equal(mine, priors)
    assert not np.array_equal(person[1], other[1][1])
    with torch.no_grad():
        for parameter in module.adapter.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    later = _cells(_grid(pictures))
    assert np.array_equal(later[0][1], prior[1]), "the prior never changes"
    assert not np.array_equal(later[1][1], person[1])


def test_drawing_leaves_no_trace(job: TrainingJob, module: MoATrainingModule) -> None:
    pictures = _open(job, module)
    adapter, flags = module.adapter, [part.training for part in module.modules()]
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    above, state = adapter.prior_only_above, torch.get_rng_state()
    assert _grid(pictures)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == flags and adapter.training
    assert adapter.prior_only_above == above != pictures._painter.settings.evaluate.prior_only_above
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in adapter.parameters())
    assert not any(
        parameter.requires_grad for name, parameter in module.unet.named_parameters() if "processor" not in name
    )


def _shown(store: ObjectStore, run_id: str) -> list[tuple[int, int]]:
    """Step and width of each picture in TensorBoard."""
    events = EventAccumulator(store.uri(f"runs/{run_id}/tensorboard/pictures"))
    events.Reload()
    return [(one.step, one.width) for one in events.Images("pictures")]


def _left_by_an_attempt_before(store: ObjectStore, run_id: str, step: int) -> bytes:
    png = to_png(Image.new("RGB", (6, 4), "red"))
    store.put(picture_key(run_id, step), png)
    return png


def test_what_is_there_is_shown_and_not_drawn_again(job: TrainingJob, module: MoATrainingModule) -> None:
    there = _left_by_an_attempt_before(job.store, "r", 4)
    pictures = _open(job, module)
    assert [step for step in range(7) if pictures.due(step)] == [2, 4, 6]
    assert [step for step in range(7) if pictures.missing(step)] == [2, 6]
    for step in (2, 4):
        pictures.show(step, pytest.fail)
    pictures.close()
    assert job.store.list("runs/r/pictures/") == [picture_key("r", 2), picture_key("r", 4)]
    assert job.store.get(picture_key("r", 4)) == there and len(_cells(job.store.get(picture_key("r", 2)))) == 4
    assert _shown(job.store, "r") == [(2, 416), (4, 6)]
    pictures._files = None
    pictures.show(6, pytest.fail)  # as any other rank does
    assert not job.store.exists(picture_key("r", 6))


def test_what_cannot_be_drawn_is_said_and_ends_nothing(job: TrainingJob, module: MoATrainingModule) -> None:
    pictures, said = _open(job, module), list[str]()
    vae, pictures._painter.pipe.vae.decoder = pictures._painter.pipe.vae.decoder, None
    pictures.show(8, said.append)
    assert len(said) == 1 and said[0].startswith("the pictures of step 8 could not be drawn (")
    assert module.adapter.training
    pictures._painter.pipe.vae.decoder = vae
    pictures.show(10, said.append)
    pictures.close()
    assert job.store.exists(picture_key("r", 10)) and not job.store.exists(picture_key("r", 8)) and len(said) == 1


def test_nobody_to_draw_is_nothing_to_load(job: TrainingJob, module: MoATrainingModule) -> None:
    nobody = TrainingJob(job.settings, job.store, "r", [], None)
    assert TrainingPictures.open(nobody, module, 0, 0, 1, lambda: None, pytest.fail) is None


def test_weights_that_are_cut_up_are_not_drawn_with(
    job: TrainingJob, module: MoATrainingModule, tmp_path: Path
) -> None:
    said = list[str]()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        fully_shard(module.adapter.prompt, mesh=init_device_mesh("cpu", (1,)))
        assert TrainingPictures.open(job, module, 0, 0, 1, lambda: None, said.append) is None
    finally:
        distributed.destroy_process_group()
    assert said == ["no pictures are drawn on the way: each worker has but a part of the weights"]


@given(
    words=st.lists(st.sampled_from(["man", "woman", "person"]), min_size=1, max_size=6),
    prompts=st.integers(1, 5),
    workers=st.integers(1, 9),
)
def test_everything_is_drawn_and_everybody_draws_as_much(words: list[str], prompts: int, workers: int) -> None:
    shares = [share(words, [str(number) for number in range(prompts)], rank, workers) for rank in range(workers)]
    for kind in (0, 1):
        assert len({len(one[kind]) for one in shares}) == 1
    drawn = {cell for one in shares for cell in one[1]}
    assert drawn == {((word, prompt), person) for person, word in enumerate(words) for prompt in range(prompts)}
    for priors, cells in shares:
        assert {scene for scene, _ in cells} == {scene for scene, _ in priors}, "nobody lacks a prior's run"


@pytest.fixture
def ray() -> Iterator[None]:
    prepare_environment()
    with ray_session(tiny_ray("", 4)):
        yield


@pytest.mark.timeout(600)
def test_pictures_change_no_bit_of_what_is_trained(root: Path, ray: None) -> None:
    """Two workers, and a grid that an attempt before has left."""
    without = train(Run(prepare(root, "without", TRAINING | {"train.pictures_every": "0"})))
    settings = prepare(root, "with", TRAINING | CHANGES)
    run_id = without["run_id"]
    store = DirectoryStore(Path(settings.store_root))
    left = _left_by_an_attempt_before(store, run_id, 4)
    drawn = train(Run(settings))
    assert drawn == without
    assert store.list(f"runs/{run_id}/pictures/") == [picture_key(run_id, step) for step in (2, 4, 6)]
    assert store.get(picture_key(run_id, 4)) == left and len(_cells(store.get(picture_key(run_id, 2)))) == 4
    assert _shown(store, run_id) == [(2, 416), (4, 6), (6, 416)]
