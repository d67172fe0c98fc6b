from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from moa_model import EMA, Batch, MoAAdapter, MoATrainingModule, load_checkpoint, save_checkpoint
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


def test_a_restart_continues_exactly(batch: Batch, tmp_path: Path) -> None:
    straight, first, second = _training(), _training(), _training()
    _steps(straight, batch, 4)
    _steps(first, batch, 2)
    save_checkpoint(tmp_path, first[0].adapter, first[1], first[2], step=2)
    assert load_checkpoint(tmp_path, second[0].adapter, second[1], second[2]) == 2
    _steps(second, batch, 2)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    for name, parameter in straight[0].adapter.named_parameters():
        assert torch.equal(parameter, second[0].adapter.get_parameter(name)), name
        assert torch.equal(straight[1].average[name], second[1].average[name]), name


def test_a_damaged_state_is_refused(batch: Batch, tmp_path: Path) -> None:
    training = _training()
    _steps(training, batch, 1)
    save_checkpoint(tmp_path, training[0].adapter, training[1], training[2], step=1)
    for name in ("average.safetensors", "optimizer.safetensors", "state.json", "adapter.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError):
            load_checkpoint(tmp_path, training[0].adapter, training[1], training[2])
        (tmp_path / name).write_bytes(content)
    assert load_checkpoint(tmp_path, training[0].adapter, training[1], training[2]) == 1
