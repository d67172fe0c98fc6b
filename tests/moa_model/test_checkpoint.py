from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from moa_model import EMA, Batch, MoAAdapter, MoATrainingModule, Snapshot, load_checkpoint
from tests.tiny_models import IMAGE_DIM, tiny_pipeline


def _training() -> tuple[MoATrainingModule, EMA, torch.optim.Optimizer]:
    pipe = tiny_pipeline()
    module = MoATrainingModule(pipe.unet, MoAAdapter.for_unet(pipe.unet, IMAGE_DIM), pipe.scheduler.config)
    optimizer = torch.optim.AdamW(module.optimizer_groups(1e-3), fused=True)
    return module, EMA(module.adapter, 0.9), optimizer


def _steps(training, batch: Batch, count: int) -> None:
    module, ema, optimizer = training
    for _ in range(count):
        module(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()


def _save(folder: Path, training, step: int, released: str | None = None) -> None:
    module, ema, optimizer = training
    for name, data in Snapshot.take(module.adapter, ema, optimizer, step).files(released):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def test_a_restart_continues_exactly(batch: Batch, tmp_path: Path) -> None:
    straight, first, second = _training(), _training(), _training()
    _steps(straight, batch, 4)
    _steps(first, batch, 2)
    _save(tmp_path, first, step=2)
    assert load_checkpoint(tmp_path, second[0].adapter, second[1], second[2]) == 2
    _steps(second, batch, 2)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    for name, parameter in straight[0].adapter.named_parameters():
        assert torch.equal(parameter, second[0].adapter.get_parameter(name)), name
        assert torch.equal(straight[1].average[name], second[1].average[name]), name


def test_a_damaged_state_is_refused(batch: Batch, tmp_path: Path) -> None:
    training = _training()
    _steps(training, batch, 1)
    _save(tmp_path, training, step=1)
    for name in ("average.safetensors", "optimizer.safetensors", "state.json", "adapter.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError):
            load_checkpoint(tmp_path, training[0].adapter, training[1], training[2])
        (tmp_path / name).write_bytes(content)
    assert load_checkpoint(tmp_path, training[0].adapter, training[1], training[2]) == 1


def test_what_was_taken_stays_as_it_was_while_the_training_goes_on(batch: Batch) -> None:
    training = _training()
    _steps(training, batch, 1)
    snapshot = Snapshot.take(training[0].adapter, training[1], training[2], step=1)
    before = dict(snapshot.files())
    _steps(training, batch, 1)
    assert dict(snapshot.files()) == before


def test_what_is_released_is_the_average(batch: Batch, tmp_path: Path) -> None:
    training = _training()
    _steps(training, batch, 3)
    _save(tmp_path, training, step=3, released="released")
    released = MoAAdapter.from_pretrained(tmp_path / "released")
    for name, parameter in released.named_parameters():
        assert torch.equal(parameter, training[1].average[name]), name
        assert not torch.equal(parameter, training[0].adapter.get_parameter(name)), name
