"""What makes a training step quick, or small, and leaves its numbers alone: layout, compiler, optimiser, recomputation.

Each is one switch, and all of them go together where each worker holds everything; weights that are cut up
(``sharding``) cannot be compiled in one graph. `make bench-training` says what each of them gives on a GPU.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moa_model.training import MoATrainingModule

Compile = Literal["off", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"]
"""How the U-Net is compiled: not at all, or one of ``torch.compile``'s modes."""
_GRAPHS = {"reduce-overhead", "max-autotune"}  # the modes that replay CUDA graphs
# Shapes of one training: a whole piece and what is left over, each with and without gradient, for every number of
# subjects (a prompt of 77 tokens names fewer), and the prior alone. Far above what occurs.
_SHAPES = 512


def prepare(
    module: MoATrainingModule,
    *,
    channels_last: bool = False,
    compile: Compile = "off",
    activation_checkpointing: bool = False,
    prior_sharded: bool = False,
    frozen_dtype: torch.dtype | None = None,
    backend: str = "inductor",
) -> MoATrainingModule:
    """Make a training module quick, in place; gives it back. Call it once, before DDP wraps it or FSDP cuts it.

    ``channels_last``: the convolutions' weights as cuDNN's tensor-core kernels read them; nothing is transposed between
    convolutions and attention any more. ``prior_sharded``, for a module whose prior will be cut: its weights stay as
    they are, since FSDP2 takes no other layout. Its input is laid out so, each convolution hands the layout on, and
    cuDNN transposes the weights when it uses them.
    ``compile``: the U-Net's forward and backward through ``torch.compile`` in one graph (a graph break is an error).
    What depends on the batch (the prompt's MLP, the losses) stays outside. The first step takes minutes; another batch
    size, latent size or number of subjects compiles anew, as does a pass without gradient. "reduce-overhead" and
    "max-autotune" replay CUDA graphs, which keep their results in the same memory: call ``begin_pass`` before each
    forward pass, and ``clear_gradients`` before each step.
    ``activation_checkpointing``: each residual and transformer block's activations are computed again in the backward
    pass: a third more work, and memory for a far larger batch.
    ``frozen_dtype``: the frozen prior in half precision, for training under autocast to that type, which would else
    convert the same weights in every step. The norms' weights are rounded too. The experts stay as they are.
    """
    if channels_last and prior_sharded:
        module.unet.conv_in.register_forward_pre_hook(_laid_out)
    elif channels_last:
        module.unet.to(memory_format=torch.channels_last)
    if frozen_dtype is not None:
        trained = set(map(id, module.adapter.parameters()))
        for parameter in module.unet.parameters():
            if id(parameter) not in trained:
                parameter.data = parameter.data.to(frozen_dtype)
    if activation_checkpointing:
        module.unet.enable_gradient_checkpointing()
    if compile != "off":
        if activation_checkpointing:
            # The layers' maps are written while a checkpointed block runs. The compiler refuses that unless it is told
            # that the second run need not write, and ours does not: see AttentionMaps.
            torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        # The compiler takes more than eight shapes for a mistake, and with fullgraph ends the training; see _SHAPES.
        known = torch._dynamo.config.accumulated_recompile_limit
        torch._dynamo.config.accumulated_recompile_limit = max(known, _SHAPES)
        # Below the adapter's hook, which looks at Python objects that are made anew for every step.
        module.unet.forward = torch.compile(
            module.unet.forward,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            mode=None if backend != "inductor" or compile == "default" else compile,
            recompile_limit=_SHAPES,
        )
    return module


def begin_pass(compile: Compile) -> None:
    """Say that what the last forward pass gave is no longer needed, so that CUDA graphs may write over it.

    Without it the compiler guesses when that is. Gradients are among it, unless ``clear_gradients`` made their place.
    """
    if compile in _GRAPHS:
        torch.compiler.cudagraph_mark_step_begin()


def clear_gradients(optimizer: torch.optim.Optimizer, compile: Compile) -> None:
    """Before a step's first backward pass.

    With CUDA graphs the gradients stay where they are and become zeros, for which a second copy's memory is paid: a
    parameter without a gradient would take the first piece's as it is, in memory that the next piece writes over.
    """
    optimizer.zero_grad(set_to_none=compile not in _GRAPHS)
    if compile in _GRAPHS:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)


def _laid_out(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(memory_format=torch.channels_last),)


def make_optimizer(
    groups: Iterable[Mapping[str, Any]], *, fused: bool = True, weight_decay: float = 0.01
) -> torch.optim.AdamW:
    """AdamW for ``MoATrainingModule.optimizer_groups``; ``fused`` updates all parameters in one kernel per device.

    A checkpoint of the one kind goes on with the other (``checkpoint.load_checkpoint``).
    """
    return torch.optim.AdamW([dict(group) for group in groups], weight_decay=weight_decay, fused=fused)
