"""What a training step costs, counted without a weight or a GPU: FLOPs, the memory of one GPU, a checkpoint's bytes.

The module that trains is built on the "meta" device, where tensors have shapes and no numbers, and its own forward and
backward are watched. Memory is counted as on a GPU: fused attention, and autocast's copies where it is asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from moa_model.adapter import MoAAdapter
from moa_model.architectures import BaseShape
from moa_model.config import MoAConfig
from moa_model.layers import layer_shapes
from moa_model.sharding import Cut, Sharding, kept_whole, units
from moa_model.speed import prepare
from moa_model.training import Batch, MoATrainingModule

_FP32, _HALF, _INT64 = 4, 2, 8  # bytes; what is trained, its gradients, AdamW and the average are fp32 in any precision

# What autocast does on a GPU to the operations of this module: those to bf16, these to fp32, all others as they come.
_IN_HALF = {
    functional.linear,
    functional.conv2d,
    torch.einsum,
    torch.matmul,
    Tensor.matmul,
    functional.scaled_dot_product_attention,
}
_IN_SINGLE = {functional.group_norm, functional.layer_norm, torch.softmax, Tensor.softmax, Tensor.pow, Tensor.sum}
# No number is there to be asked for. What the module asks is whether and where somebody is bound (yes, at a token that
# every prompt has) and whether the timesteps are trained (all are): 1 is the answer that training gives.
_ANSWERS: dict[Any, Any] = {Tensor.__bool__: True, Tensor.__int__: 1, Tensor.__float__: 1.0}


@dataclass(frozen=True)
class Gathered:
    """Bytes of what sharded training (``sharding``) makes whole on every GPU while it works."""

    always: int
    """The module's own unit, from the forward to the end of the backward pass, and the norms, which nobody cuts."""
    unit: int
    """Weights of the largest other unit."""
    unit_gradients: int
    """Its gradients, as they come and as they are summed."""
    casts: int
    """Autocast's copies of weights that are not gathered in half precision: the prompt's, and a whole prior's."""
    weights: int
    """All that is gathered for one forward pass."""

    @property
    def most(self) -> int:
        """At one time: what always is, the unit that works, the one that comes, and the buffer in which it came."""
        return self.always + 3 * self.unit + self.unit_gradients


@dataclass(frozen=True)
class TrainingCost:
    """Counts of one base, one objective and one precision; FLOPs and activations are those of one sample."""

    base_parameters: int
    expert_parameters: int
    router_parameters: int
    prompt_parameters: int
    adapter_tensors: int
    """How many tensors the adapter's parameters are."""
    prior_flops: int
    """One forward pass of the base alone."""
    forward_flops: int
    """With experts, routers and prompt, and the losses."""
    backward_flops: int
    """Frozen weights need no gradient, nor does anything that lies before the first expert. With what activation
    checkpointing computes again."""
    preserving: bool
    """Whether the objective needs the prior's own prediction, a second forward pass."""
    activation_bytes: int
    """What autograd keeps for the backward pass, per sample."""
    cast_bytes: int
    """What is kept whatever the batch: autocast's copies of the weights."""
    gathered: Mapping[Cut, Gathered]
    """By what is cut."""
    layers: int = 1
    """Attention layers, by which the number of kernels grows."""
    frozen_bytes: int = _FP32
    """Of each of the base's numbers."""
    recomputed_bytes: int = 0
    """What the block with the largest activations has in the backward pass, per sample, with activation checkpointing;
    ``activation_bytes`` are then what is kept between blocks."""

    @property
    def adapter_parameters(self) -> int:
        """All that are trained."""
        return self.expert_parameters + self.router_parameters + self.prompt_parameters

    @property
    def sample_flops(self) -> int:
        """A training step's, per sample."""
        return self.forward_flops + self.backward_flops + self.preserving * self.prior_flops

    @property
    def gradient_bytes(self) -> int:
        """The trained parameters' gradients."""
        return _FP32 * self.adapter_parameters

    @property
    def optimizer_bytes(self) -> int:
        """AdamW's two moments of every trained number, and a count of steps for every tensor."""
        return 2 * _FP32 * self.adapter_parameters + _FP32 * self.adapter_tensors

    @property
    def average_bytes(self) -> int:
        """``EMA``'s."""
        return _FP32 * self.adapter_parameters + _INT64

    @property
    def checkpoint_bytes(self) -> int:
        """Tensors of a ``Snapshot``: adapter, average and optimizer; headers and JSON add some 0.1 MB."""
        return _FP32 * self.adapter_parameters + self.average_bytes + self.optimizer_bytes

    def memory(self, samples: int, workers: int = 1, sharding: Sharding = "none") -> dict[str, int]:
        """Bytes on each of ``workers`` GPUs at ``samples`` a GPU, by what they are for.

        An upper bound of what is counted, since the gradients come while activations go; without what the backward
        pass and the kernels need in passing. Parts are counted as equal, which differs by a row a tensor at most.
        """
        gathered = None if sharding == "none" or workers == 1 else self.gathered[sharding]
        own, prior = (1 if gathered is None else workers), (workers if gathered and sharding == "fsdp" else 1)
        return {
            "base": -(-self.frozen_bytes * self.base_parameters // prior),
            "adapter": -(-_FP32 * self.adapter_parameters // own),
            "gradients": -(-self.gradient_bytes // own),
            # DistributedDataParallel sums gradients in buckets of its own.
            "gradient_buckets": self.gradient_bytes if workers > 1 and gathered is None else 0,
            "optimizer": -(-self.optimizer_bytes // own),
            "average": -(-self.average_bytes // own),
            "gathered": 0 if gathered is None else gathered.most,
            "casts": self.cast_bytes if gathered is None else gathered.casts,
            "activations": samples * self.activation_bytes,
            "recomputed": samples * self.recomputed_bytes,
        }

    def exchanged(self, pieces: int, workers: int, sharding: Sharding = "none") -> float:
        """Bytes that each GPU sends in a step of so many pieces a GPU, where every collective is a ring."""
        passing = (workers - 1) / workers
        if sharding == "none":
            return 2 * self.gradient_bytes * passing  # summed, and the sum told to all: once a step
        weights = self.gathered[sharding].weights * (2 + self.preserving)  # for each forward and the backward pass
        return pieces * (weights + self.gradient_bytes) * passing

    def samples_within(self, budget: float, workers: int = 1, reserve: float = 0.0, sharding: Sharding = "none") -> int:
        """The most samples a GPU whose memory, and ``reserve`` times their activations again, fit into ``budget``."""
        free = budget - sum(self.memory(0, workers, sharding).values())
        return max(0, int(free // ((self.activation_bytes + self.recomputed_bytes) * (1 + reserve))))


def count_training(
    base: BaseShape,
    image_dim: int,
    latent_size: tuple[int, int],
    *,
    precision: Literal["fp32", "bf16"] = "bf16",
    blocks: Literal["middle", "all"] = "middle",
    preserving: bool = False,
    frozen_precision: Literal["fp32", "bf16"] = "fp32",
    activation_checkpointing: bool = False,
) -> TrainingCost:
    """Count a training of MoA on ``base`` at latents of ``latent_size`` (height, width), one subject a sample.

    ``blocks``, ``preserving``: the objective's, as of ``MoATrainingModule``. Some seconds; SDXL's half a minute.
    """
    module = _module(base, image_dim, blocks)
    prior = _prior_flops(module, _batch(1, base, image_dim, latent_size))
    if frozen_precision == "bf16":
        prepare(module, frozen_dtype=torch.bfloat16)
    casts = _kept_casts(module, _batch(1, base, image_dim, latent_size)) if precision == "bf16" else {}
    measure = _checkpointed_bytes if activation_checkpointing else _saved_bytes
    one, two = (measure(module, _batch(rows, base, image_dim, latent_size), precision) for rows in (1, 2))
    if activation_checkpointing:
        module.unet.enable_gradient_checkpointing()  # as `prepare` does
    forward, backward = _step_flops(module.float(), _batch(1, base, image_dim, latent_size))
    adapter = module.adapter
    return TrainingCost(
        base_parameters=_count([module.unet]) - _count(adapter.layers),  # which the U-Net carries
        expert_parameters=_count(layer.expert for layer in adapter.layers),
        router_parameters=_count(layer.router for layer in adapter.layers),
        prompt_parameters=_count([adapter.prompt]),
        adapter_tensors=len(list(adapter.parameters())),
        prior_flops=prior,
        forward_flops=forward,
        backward_flops=backward,
        preserving=preserving,
        activation_bytes=two.kept - one.kept,
        cast_bytes=sum(2 * first - second for first, second in zip(one, two, strict=True)),
        gathered={cut: _gathered(module, cut, casts) for cut in get_args(Cut)},
        layers=len(adapter.layers),
        frozen_bytes=_HALF if frozen_precision == "bf16" else _FP32,
        recomputed_bytes=two.recomputed - one.recomputed,
    )


def count_flops(
    base: BaseShape,
    image_dim: int,
    latent_size: tuple[int, int],
    *,
    blocks: Literal["middle", "all"] = "middle",
    preserving: bool = False,
) -> int:
    """``count_training``'s ``sample_flops`` alone, in a third of the time; nothing is computed again."""
    module = _module(base, image_dim, blocks)
    batch = _batch(1, base, image_dim, latent_size)
    return sum(_step_flops(module, batch)) + (_prior_flops(module, batch) if preserving else 0)


def saved_for_backward(work: Callable[[], Any], known: Iterable[Tensor]) -> tuple[Any, int]:
    """What ``work`` gives, and the bytes that autograd keeps of it: each storage once, those of ``known`` left out."""
    result, kept = _kept(work, known)
    return result, sum(storage.nbytes() for storage in kept.values())


def _kept(work: Callable[[], Any], known: Iterable[Tensor]) -> tuple[Any, dict[int, torch.UntypedStorage]]:
    outside = {tensor.untyped_storage()._cdata for tensor in known}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no number is given out again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # A fused kernel's random state, which nobody here draws from, is no activation.
        if storage._cdata not in outside and tensor.dtype != torch.uint64:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return work(), kept


class _Shapes(TorchFunctionMode):
    """Answers where a number would be needed; with ``gpu`` also attention and autocast as a GPU has them."""

    def __init__(self, gpu: bool = False, half: bool = False) -> None:
        super().__init__()
        self.gpu, self.half = gpu, half
        self.copies: list[tuple[nn.Parameter, Tensor]] = []
        """Autocast's, of weights."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _ANSWERS:
            return _ANSWERS[function]
        if self.half and (function in _IN_HALF or function in _IN_SINGLE):
            dtype = torch.bfloat16 if function in _IN_HALF else torch.float32
            args = [self._cast(each, dtype) for each in args]
            kwargs = {name: self._cast(each, dtype) for name, each in kwargs.items()}
        if self.gpu and function is functional.scaled_dot_product_attention:
            # The plain kernel, which "meta" would take, keeps N × N scores; this one what every fused one keeps.
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return function(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        cast = value.to(dtype)
        if isinstance(value, nn.Parameter):
            self.copies.append((value, cast))
        return cast


def _module(base: BaseShape, image_dim: int, blocks: Literal["middle", "all"]) -> MoATrainingModule:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(base.unet))
        shapes = {"image_dim": image_dim, "text_dim": base.text_dim, "layers": layer_shapes(unet)}
        adapter = MoAAdapter(MoAConfig.model_validate(shapes))
        return MoATrainingModule(unet, adapter, {"num_train_timesteps": adapter.config.timesteps}, blocks=blocks)


def _batch(rows: int, base: BaseShape, image_dim: int, latent_size: tuple[int, int]) -> Batch:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    return Batch(
        latents=empty(rows, base.latent_channels, *latent_size),
        text=empty(rows, base.tokens, base.text_dim),
        null_text=empty(base.tokens, base.text_dim),
        image_embeds=empty(rows, 1, image_dim),
        tokens=empty(rows, 1, dtype=torch.int64),
        masks=empty(rows, 1, *latent_size),
        noise=empty(rows, base.latent_channels, *latent_size),
        timesteps=empty(rows, dtype=torch.int64),
        dropped=empty(rows, dtype=torch.bool),
        pooled=empty(rows, base.pooled_dim) if base.pooled_dim else None,
        null_pooled=empty(base.pooled_dim) if base.pooled_dim else None,
        time_ids=empty(rows, 6) if base.pooled_dim else None,
    )


def _step_flops(module: MoATrainingModule, batch: Batch) -> tuple[int, int]:
    """Forward and backward. Attention is the plain kernel's: a fused one computes the scores twice, at no gain."""
    with _Shapes():
        with FlopCounterMode(display=False) as forward:
            total = module(batch).total
        with FlopCounterMode(display=False) as backward:
            total.backward()
    module.zero_grad(set_to_none=True)
    return forward.get_total_flops(), backward.get_total_flops()


def _prior_flops(module: MoATrainingModule, batch: Batch) -> int:
    with torch.no_grad(), _Shapes(), FlopCounterMode(display=False) as counter:
        module.unet(batch.noise, batch.timesteps, batch.text, added_cond_kwargs=batch.added_conditions)
    return counter.get_total_flops()


class _Held(NamedTuple):
    """Bytes of a forward pass: what stays for the backward pass, and the most that a block has in it besides."""

    kept: int
    recomputed: int = 0
    copies: int = 0
    """Of what is trained, by autocast until the forward pass is over; without recomputation they are among the kept."""


def _saved_bytes(module: MoATrainingModule, batch: Batch, precision: str) -> _Held:
    with _Shapes(gpu=True, half=precision == "bf16"):
        return _Held(saved_for_backward(lambda: module(batch), [*module.parameters(), *module.buffers()])[1])


def _checkpointed_bytes(module: MoATrainingModule, batch: Batch, precision: str) -> _Held:
    """As with activation checkpointing: a block's inputs are kept, and all else is there while it runs again."""
    known, blocks = [*module.parameters(), *module.buffers()], list[int]()

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        given = [one for one in inputs if isinstance(one, Tensor)]
        _Keep.apply(torch.empty(0, device="meta", requires_grad=True), *given)
        output, size = saved_for_backward(lambda: block(*inputs), [*known, *given])
        blocks.append(size)
        return output

    module.unet.enable_gradient_checkpointing(run)
    kept = _saved_bytes(module, batch, precision).kept
    copies = _HALF * _count([module.adapter]) if precision == "bf16" else 0
    return _Held(kept, max(blocks), copies)


class _Keep(torch.autograd.Function):
    """Saves its inputs and does nothing with them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        raise AssertionError("nobody's output")


def _kept_casts(module: MoATrainingModule, batch: Batch) -> dict[nn.Parameter, int]:
    """Bytes of those copies that autocast makes of weights and autograd keeps."""
    with _Shapes(gpu=True, half=True) as shapes:
        _, kept = _kept(lambda: module(batch), [*module.parameters(), *module.buffers()])
    found = ((one, kept.get(copy.untyped_storage()._cdata)) for one, copy in shapes.copies)
    return {one: storage.nbytes() for one, storage in found if storage is not None}


def _gathered(module: MoATrainingModule, cut: Cut, casts: Mapping[nn.Parameter, int]) -> Gathered:
    """``casts``: what autocast copies where nothing is cut; {} in single precision."""
    each = _HALF if casts else _FP32  # of a gathered number, but for the prompt's, which stay in single precision
    whole, prompt = kept_whole(module, cut), module.adapter.prompt
    blocks = [[one for one in unit.parameters() if one not in whole] for unit in units(module, cut)[:-1]]
    sizes = [sum(one.numel() for one in block) for block in blocks]
    trained = [sum(one.numel() for one in block if one.requires_grad) for block in blocks]
    held, inner = sum(one.numel() for one in whole), _count([prompt])
    outer = _count([module]) - held - sum(sizes) - inner
    copied = {*whole, *prompt.parameters()}
    return Gathered(
        always=(_FP32 * held if cut == "fsdp" else 0) + each * outer,  # a whole prior is the base's
        unit=max(each * max(sizes), _FP32 * inner),
        unit_gradients=max((each + _FP32) * max(trained), 2 * _FP32 * inner),
        casts=sum(size for one, size in casts.items() if one in copied),
        weights=each * (outer + sum(sizes)) + _FP32 * inner,
    )


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
