"""Sharded training by torch's FSDP2: each worker holds a part of every tensor, and whole ones only while they work.

A part is the worker's share of a tensor's rows (its first axis). Before a unit runs, forward or backward, its weights
are gathered, and let go after it; its gradients are summed over the workers and each keeps its part, of which alone the
optimizer and the average then know. "fsdp-trained" cuts what is trained, "fsdp" the frozen prior as well.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from moa_model.training import MoATrainingModule

Cut = Literal["fsdp-trained", "fsdp"]
Sharding = Literal["none", "fsdp-trained", "fsdp"]


def units(module: MoATrainingModule, cut: Cut = "fsdp") -> list[nn.Module]:
    """What is gathered at once: transformer blocks, which carry their experts, the prompt's MLP and, where the prior is
    cut, residual blocks.

    The blocks are also what activation checkpointing runs again. The rest of the U-Net is the module's own unit, which
    stays whole from the first forward pass to the end of the backward pass.
    """
    kinds: tuple[type[nn.Module], ...] = (BasicTransformerBlock, *((ResnetBlock2D,) if cut == "fsdp" else ()))
    return [*(each for each in module.unet.modules() if isinstance(each, kinds)), module.adapter.prompt]


def kept_whole(module: MoATrainingModule, cut: Cut = "fsdp") -> set[nn.Parameter]:
    """What every worker holds: the prior, or of it the norms: they are small, and autocast wants them as they are."""
    if cut == "fsdp-trained":
        return {parameter for parameter in module.unet.parameters() if not parameter.requires_grad}
    norms = [each for each in module.unet.modules() if isinstance(each, nn.LayerNorm | nn.GroupNorm)]
    return {parameter for norm in norms for parameter in norm.parameters()}


def shard(module: MoATrainingModule, device: torch.device, cut: Cut = "fsdp", half: torch.dtype | None = None) -> None:
    """Cut a module that every worker has made alike, in place; call it on the CPU, before there is an optimizer.

    ``device``: where the parts go; unit by unit, so that no device ever holds all that is cut. ``half``: autocast's
    type, if the training runs under it: weights are then gathered in it, which is what autocast would make of them (and
    keep for the backward pass), and gradients are summed in single precision as ever. The process group must be there.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # FSDP works on the current one
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    # What comes in has autocast's types already.
    single = MixedPrecisionPolicy(cast_forward_inputs=False)
    halved = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
    whole = kept_whole(module, cut)
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    prompt = module.adapter.prompt  # it works outside autocast's types, too
    for unit in units(module, cut):
        fully_shard(unit, mesh=mesh, mp_policy=single if unit is prompt else halved, ignored_params=whole)
    # The adapter reaches the experts by a second path, on which no block stands.
    done = {parameter for parameter in module.parameters() if isinstance(parameter, DTensor)}
    fully_shard(module, mesh=mesh, mp_policy=halved, ignored_params=whole | done)
    for each in module.modules():
        if isinstance(each, FSDPModule):
            # A plain sum: shares of a batch may differ in size, and gloo knows no mean.
            each.set_gradient_divide_factor(1.0)
            each.set_force_sum_reduction_for_comms(True)
    # What the prompt's MLP gives is a view, which nobody changes in place.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPMultimodalPrompt\) returned a view")


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor this worker keeps where ``like`` is kept: its part, or all of it; on that device."""
    there = whole.to(like.device)
    if not isinstance(like, DTensor):
        return there
    # Everybody has the whole already: nothing is sent.
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


@dataclass(frozen=True)
class Part:
    """A worker's rows of a tensor, in main memory with bytes of their own."""

    rows: Tensor
    shape: torch.Size
    """Of the whole."""


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Part]:
    """Copies in main memory: of a sharded tensor the part that is here."""
    return {name: _copied(tensor.detach()) for name, tensor in tensors.items()}


def _copied(tensor: Tensor) -> Tensor | Part:
    if isinstance(tensor, DTensor):
        return Part(_in_memory(tensor.to_local()), tensor.shape)
    return _in_memory(tensor)


def _in_memory(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True).contiguous()


def gather(copies: Mapping[str, Tensor | Part], group: distributed.ProcessGroup) -> dict[str, Tensor]:
    """Whole tensors on worker 0, one after the other; {} on the others. All workers call it with the same names.

    ``group`` sends main memory (gloo) and belongs to nobody else: so it may run on a thread beside the training.
    """
    rank, whole = group.rank(), dict[str, Tensor]()
    for name, copy in copies.items():
        if isinstance(copy, Tensor):
            whole[name] = copy
        elif rank:
            if copy.rows.numel():
                distributed.send(copy.rows, 0, group)
        else:
            whole[name] = torch.empty(copy.shape, dtype=copy.rows.dtype)
            # FSDP cuts as `chunk` does: the last workers may have fewer rows, or none.
            for worker, rows in enumerate(whole[name].chunk(group.size())):
                if worker:
                    distributed.recv(rows, worker, group)
                else:
                    rows.copy_(copy.rows)
    return {} if rank else whole
