"""What is cut, what stays whole, and how parts become tensors again."""

from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from moa_model import EMA, MoAAdapter, MoATrainingModule
from moa_model.sharding import Cut, Part, copied, gather, kept_whole, part_of, shard, units
from moa_model.training_cost import _gathered, _kept_casts
from tests.moa_model.conftest import make_batch
from tests.tiny_models import IMAGE_DIM, tiny_pipeline
from tests.worker_processes import in_workers

SHAPES = [(7, 3), (2,), (1, 2, 2), (6,), (4, 4)]  # rows for all alike, for some more, and for some none


def _module() -> MoATrainingModule:
    pipe = tiny_pipeline()
    return MoATrainingModule(pipe.unet, MoAAdapter.for_unet(pipe.unet, IMAGE_DIM), pipe.scheduler.config)


def test_every_weight_is_in_one_unit_or_the_modules_own_or_stays_whole() -> None:
    module = _module()
    parts = units(module)
    kinds = [type(unit).__name__ for unit in parts]
    assert kinds.count("BasicTransformerBlock") == 16 and kinds.count("ResnetBlock2D") == 22
    assert kinds[-1] == "MultimodalPrompt" and len(kinds) == 39
    inside = [parameter for unit in parts for parameter in unit.parameters()]
    assert len(inside) == len(set(inside)) and set(inside) >= set(module.adapter.parameters())
    own = {name for name, each in module.unet.named_parameters() if each not in set(inside)}
    assert {name.split(".")[0] for name in own} >= {"conv_in", "conv_out", "time_embedding"}
    assert not any("transformer_blocks" in name or "resnets" in name for name in own)
    assert all(parameter.ndim == 1 and not parameter.requires_grad for parameter in kept_whole(module))


def _held(rank: int, workers: int, cut: Cut, half: bool) -> dict[str, Any]:
    """Numbers that this worker has of what is trained, of what is not, and whole; how many units are whole at once, and
    of which type their weights are then."""
    module, counts = _module(), {"trained": 0, "frozen": 0, "whole": 0}
    shard(module, torch.device("cpu"), cut, torch.bfloat16 if half else None)
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            counts["trained" if parameter.requires_grad else "frozen"] += parameter.to_local().numel()
        else:
            counts["whole"] += parameter.numel()
    at_once, dtypes = set[int](), set[str]()

    def look(*_: object) -> None:
        here = [unit for unit in units(module, cut) if not any(isinstance(one, DTensor) for one in unit.parameters())]
        at_once.add(len(here))
        dtypes.update(str(one.dtype) for unit in here for one in unit.parameters() if one not in whole)

    whole = kept_whole(module, cut)
    for unit in units(module, cut)[:-1]:
        unit.register_forward_pre_hook(look)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        module(make_batch(2))
    return {**counts, "at_once": sorted(at_once), "dtypes": sorted(dtypes)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("cut", "half"), [("fsdp", False), ("fsdp", True), ("fsdp-trained", True)])
def test_each_worker_holds_its_share_and_one_unit_at_a_time(cut: Cut, half: bool) -> None:
    module = _module()
    whole = sum(parameter.numel() for parameter in kept_whole(module, cut))
    trained = sum(parameter.numel() for parameter in module.adapter.parameters())
    frozen = sum(parameter.numel() for parameter in module.unet.parameters() if not parameter.requires_grad) - whole
    found = in_workers(3, _held, cut, half)
    assert [one["whole"] for one in found] == [whole] * 3
    assert sum(one["trained"] for one in found) == trained and sum(one["frozen"] for one in found) == frozen
    # Cut by rows: three workers' shares differ by a row of each tensor.
    assert max(one["trained"] for one in found) < 0.4 * trained
    assert max(one["frozen"] for one in found) <= 0.4 * frozen and (frozen == 0) == (cut == "fsdp-trained")
    for one in found:
        assert one["at_once"] == [1], "a block's weights are let go before the next block runs"
        assert one["dtypes"] == (["torch.bfloat16"] if half else ["torch.float32"])


def _there_and_back(rank: int, workers: int, folder: Path) -> dict[str, list[int]]:
    mesh = init_device_mesh("cpu", (workers,))
    whole = load_file(folder / "whole.safetensors")
    cut = {
        name: distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None) if tensor.ndim else tensor
        for name, tensor in whole.items()
    }
    again = {name: part_of(whole[name], like) for name, like in cut.items()}
    for name, tensor in again.items():
        assert type(tensor) is type(cut[name]) and tensor.dtype == cut[name].dtype
        local = [one.to_local() if isinstance(one, DTensor) else one for one in (tensor, cut[name])]
        assert torch.equal(*local)
    copies = copied(cut)
    for tensor in cut.values():  # what is copied has bytes of its own
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    gathered = gather(copies, distributed.new_group(backend="gloo"))
    if rank == 0:
        save_file(gathered, folder / "gathered.safetensors")
    assert bool(gathered) == (rank == 0)
    return {name: list(copy.rows.shape) for name, copy in copies.items() if isinstance(copy, Part)}


@pytest.mark.timeout(300)
def test_parts_become_the_same_tensors(tmp_path: Path) -> None:
    """Of every type that a state has; some workers have no row of some."""
    torch.manual_seed(0)
    whole = {f"{shape}": torch.randn(shape, dtype=torch.float64) for shape in SHAPES}
    whole |= {"half": torch.randn(5, 2).bfloat16(), "single": torch.randn(8), "count": torch.tensor(7)}
    save_file(whole, tmp_path / "whole.safetensors")
    rows = in_workers(4, _there_and_back, tmp_path)
    assert (tmp_path / "gathered.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert [one["(7, 3)"] for one in rows] == [[2, 3], [2, 3], [2, 3], [1, 3]]
    assert [one["(2,)"] for one in rows] == [[1], [1], [0], [0]]


def test_a_whole_state_stays_as_it_is() -> None:
    module = _module()
    ema = EMA(module.adapter, 0.9)
    state = {name: tensor + 1 for name, tensor in ema.state_dict().items()}
    assert all(part_of(tensor, ema.average[name]) is tensor for name, tensor in state.items() if name != "updates")
    copies = copied(state)
    assert all(isinstance(copy, torch.Tensor) and torch.equal(copy, state[name]) for name, copy in copies.items())
    state["updates"] += 1
    assert copies["updates"] != state["updates"]


def test_what_is_counted_of_the_units_adds_up() -> None:
    module = _module().to("meta")
    whole = sum(parameter.numel() for parameter in kept_whole(module))
    everything = sum(parameter.numel() for parameter in module.parameters())
    gathered, half = (
        _gathered(module, "fsdp", {}),
        _gathered(module, "fsdp", _kept_casts(module, make_batch(2).to("meta"))),
    )
    assert gathered.weights == 4 * (everything - whole)
    largest = max(
        sum(one.numel() for one in unit.parameters() if one.ndim > 1 or one.requires_grad) for unit in units(module)
    )
    assert gathered.unit == pytest.approx(4 * largest, rel=0.05)
    assert gathered.casts == 0 < half.casts and half.weights < gathered.weights
