"""What a worker begins with is the base's own, and the same on every worker."""

from pathlib import Path

import pytest
import torch

from flows.run import Run
from flows.training_job import TrainingJob
from flows.training_models import base_of, new_adapter
from infra.settings import Settings
from tests.faults.training_runs import prepare
from tests.moa_model.conftest import trained_like
from tests.tiny_models import IMAGE_DIM


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return prepare(tmp_path_factory.mktemp("models"), "here", {"evaluate.prior_only_above": "700"})


def test_the_base_is_what_its_folder_says(settings: Settings) -> None:
    unet, scheduler, scaling, shift = base_of(settings)
    assert unet.config["cross_attention_dim"] and scheduler["num_train_timesteps"] == 1000
    assert scaling == pytest.approx(0.18215) and shift == 0.0


def test_an_adapter_is_the_seeds_or_that_from_which_it_starts(settings: Settings, tmp_path: Path) -> None:
    unet = base_of(settings)[0]
    job = TrainingJob(settings, Run(settings).store, "r", [], None)
    one, other = new_adapter(job, unet, IMAGE_DIM).state_dict(), new_adapter(job, unet, IMAGE_DIM).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)

    trained = trained_like(new_adapter(job, unet, IMAGE_DIM))
    trained.config = trained.config.model_copy(update={"prior_only_above": 1, "image_encoder": "another"})
    trained.save_pretrained(tmp_path)
    start = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    warm = new_adapter(TrainingJob(settings, job.store, "r", [], start), unet, IMAGE_DIM)
    assert all(torch.equal(warm.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    assert any(not torch.equal(one[name], tensor) for name, tensor in trained.state_dict().items())
    assert warm.config.prior_only_above == 700, "what is no weight is this run's"
    assert warm.config.image_encoder == settings.models.clip.location
