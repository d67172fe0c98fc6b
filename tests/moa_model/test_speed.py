"""Every way to make a training step quick leaves losses and gradients what they are."""

from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast, get_args

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
import torch._inductor
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from moa_model import EMA, Batch, Losses, MoAAdapter, MoATrainingModule, Snapshot, load_checkpoint
from moa_model.attention import AttentionMaps, MoAAttentionProcessor, MoAStep
from moa_model.layers import LayerShape
from moa_model.prompt import one_hot_tokens
from moa_model.speed import Compile, begin_pass, clear_gradients, make_optimizer, prepare
from tests.moa_model.conftest import make_batch, trained_like
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS


def _module(dtype: torch.dtype = torch.float32) -> MoATrainingModule:
    """One level of Stable Diffusion's layout, two transformer blocks: quick to trace."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=TEXT_DIM,
        norm_num_groups=4,
    ).eval()
    adapter = trained_like(MoAAdapter.for_unet(unet, IMAGE_DIM))
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    return MoATrainingModule(unet, adapter, scheduler.config, lambda_object=0.5, blocks="all").to(dtype)


def _run(module: MoATrainingModule, batch: Batch) -> tuple[Losses, list[Tensor]]:
    module.zero_grad()
    losses = module(batch)
    losses.total.backward()
    gradients = [parameter.grad for parameter in module.adapter.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return losses, [gradient.clone() for gradient in gradients if gradient is not None]


@pytest.fixture(scope="module")
def expected() -> tuple[Losses, list[Tensor]]:
    return _run(_module(), make_batch())


def _require_same(actual: tuple[Losses, list[Tensor]], expected: tuple[Losses, list[Tensor]]) -> None:
    for ours, theirs in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_channels_last_is_the_same_step(expected: tuple[Losses, list[Tensor]]) -> None:
    module = prepare(_module(), channels_last=True)
    assert module.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    _require_same(_run(module, make_batch()), expected)


def test_activation_checkpointing_is_the_same_step_bit_for_bit_and_writes_maps_once(
    expected: tuple[Losses, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[AttentionMaps] = []

    def spied(*arguments: Any, **options: Any) -> AttentionMaps:
        kept.append(AttentionMaps(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr("moa_model.training.AttentionMaps", spied)
    module = prepare(_module(), activation_checkpointing=True)
    runs = {"layers": 0}
    module.adapter.layers[1].router.register_forward_hook(lambda *_: runs.update(layers=runs["layers"] + 1))
    losses = module(make_batch())
    (maps,) = kept
    before = {id(each) for each in (*maps.router.values(), *maps.subject.values())}
    losses.total.backward()
    assert runs["layers"] == 2, "the layer runs once more in the backward pass"
    assert {id(each) for each in (*maps.router.values(), *maps.subject.values())} == before
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(losses, expected[0], strict=True))
    gradients = [parameter.grad for parameter in module.adapter.parameters()]
    for ours, theirs in zip(gradients, expected[1], strict=True):
        assert ours is not None and torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("all_else", [False, True], ids=["alone", "with all else"])
def test_the_unet_compiles_in_one_graph_for_training(expected: tuple[Losses, list[Tensor]], all_else: bool) -> None:
    """Traced whole, which a graph break would refuse; other random numbers need no other graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = prepare(
        _module(), compile="default", backend="eager", channels_last=all_else, activation_checkpointing=all_else
    )
    _require_same(_run(module, make_batch()), expected)
    batch = make_batch()
    _run(module, replace(batch, timesteps=batch.timesteps.flip(0), dropped=~batch.dropped))
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


class _OneLayer(nn.Module):
    """In the place of a U-Net, which is traced for many seconds a shape: one MoA layer, called as a U-Net calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Attention(query_dim=8, cross_attention_dim=TEXT_DIM, heads=2, dim_head=4)
        shape = LayerShape(
            name="x",
            block=0,
            cross=True,
            hidden_dim=8,
            condition_dim=TEXT_DIM,
            inner_dim=8,
            heads=2,
            qkv_bias=False,
            out_bias=True,
        )
        self.layer = MoAAttentionProcessor(shape, cross_index=0)

    def forward(self, hidden: Tensor, text: Tensor, moa: MoAStep) -> Tensor:
        return self.layer(self.host, hidden, text, moa=moa)


def test_all_shapes_of_a_training_compile() -> None:
    """One to four people, a whole piece and what is left over, with and without gradient: twice what torch expects."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = _OneLayer().double()
    compiled = deepcopy(plain)
    prepare(cast(MoATrainingModule, SimpleNamespace(unet=compiled)), compile="default", backend="eager")
    for people, count, gradient in product(range(1, 5), (3, 2), (True, False)):
        hidden, text = torch.randn(count, 9, 8).double(), torch.randn(count, TOKENS, TEXT_DIM).double()
        token_BST = one_hot_tokens(torch.arange(5, 5 + people).repeat(count, 1), TOKENS, like=text)
        word_LBSD = torch.randn(1, count, people, TEXT_DIM).double()
        with torch.set_grad_enabled(gradient):
            ours, theirs = (
                each(hidden, text, MoAStep(word_LBSD, token_BST, maps=AttentionMaps({0}))) for each in (compiled, plain)
            )
        torch.testing.assert_close(ours, theirs)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert graphs == 16


def test_a_frozen_prior_in_half_precision_leaves_the_experts_and_the_loss() -> None:
    batch = make_batch()
    module = prepare(_module(), frozen_dtype=torch.bfloat16)
    assert module.unet.conv_in.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in module.adapter.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        half, gradients = _run(module, batch)
        whole, _ = _run(_module(), batch)
    torch.testing.assert_close(half.total, whole.total, rtol=1e-2, atol=1e-3)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize("compile", get_args(Compile))
def test_a_compile_mode_reaches_the_compiler_and_graphs_are_told_of_each_pass(
    compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, marks = list[Any](), list[bool]()
    monkeypatch.setattr(torch, "compile", lambda forward, **options: asked.append(options["mode"]) or forward)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(True))
    prepare(_module(), compile=compile)
    begin_pass(compile)
    assert asked == {"off": [], "default": [None]}.get(compile, [compile])
    graphs = compile != "off" and torch._inductor.list_mode_options(compile).get("triton.cudagraphs", False)
    assert len(marks) == graphs


class _OverwrittenByGraphs(torch.autograd.Function):
    """Gives gradients in memory of its own, as a replayed CUDA graph does, which the next pass writes over."""

    memory: ClassVar[list[Tensor]] = []

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        memory = gradient.clone()
        _OverwrittenByGraphs.memory.append(memory.detach())  # the same memory by another name
        return memory

    @classmethod
    def overwrite(cls) -> None:
        for one in cls.memory:
            one.fill_(torch.nan)
        cls.memory.clear()


@pytest.mark.parametrize("compile", ["reduce-overhead", "max-autotune"])
def test_pieces_gradients_add_up_outside_of_the_graphs_memory(
    compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: there is no CUDA graph on a CPU. Each step's first pass, too, may write over what was before."""
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", _OverwrittenByGraphs.overwrite)
    weight = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([{"params": [weight], "lr": 0.0}])
    places = set()
    for _ in range(2):
        clear_gradients(optimizer, compile)
        for piece in (1.0, 2.0):
            begin_pass(compile)
            (_OverwrittenByGraphs.apply(weight) * piece).sum().backward()
        assert weight.grad is not None
        assert weight.grad.tolist() == [3.0] * 3
        places.add(weight.grad.data_ptr())
        optimizer.step()
    assert len(places) == 1


@pytest.mark.parametrize("compile", ["off", "default", "max-autotune-no-cudagraphs"])
def test_without_graphs_no_gradient_is_kept(compile: Compile) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([{"params": [weight], "lr": 0.0}])
    weight.sum().backward()
    clear_gradients(optimizer, compile)
    assert weight.grad is None


def test_a_training_step_reads_no_value_off_the_device() -> None:
    """On "meta" there are none to be read: an accelerator is never waited for."""
    losses = _module().to("meta")(make_batch().to("meta"))
    losses.total.backward()
    assert losses.total.device.type == "meta"


def test_fused_adamw_is_adamw_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def train(module: MoATrainingModule, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        for _ in range(2):
            _run(module, make_batch())
            optimizer.step()
        return [parameter.detach().clone() for parameter in module.adapter.parameters()]

    results = []
    for kinds in ((False, False), (True, True), (False, True)):
        module = _module()
        first = make_optimizer(module.optimizer_groups(1e-3), fused=kinds[0])
        train(module, first)
        for name, data in Snapshot.take(module.adapter, EMA(module.adapter, 0.9), first, 2).files():
            (tmp_path / name).write_bytes(data)
        again = _module()
        second = make_optimizer(again.optimizer_groups(1e-3), fused=kinds[1])
        assert load_checkpoint(tmp_path, again.adapter, EMA(again.adapter, 0.9), second) == 2
        assert bool(second.param_groups[0]["fused"]) == kinds[1]
        results.append(train(again, second))
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
