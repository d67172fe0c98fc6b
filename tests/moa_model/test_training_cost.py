"""What is counted without numbers, against a model that has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moa_model import EMA, Batch, MoAAdapter, MoATrainingModule, Snapshot
from moa_model.architectures import PUBLISHED_BASES, BaseShape
from moa_model.sharding import Cut, Sharding
from moa_model.speed import prepare
from moa_model.training_cost import (
    Gathered,
    TrainingCost,
    _checkpointed_bytes,
    _saved_bytes,
    _Shapes,
    count_flops,
    count_training,
    saved_for_backward,
)
from moa_model.training_cost import _batch as _meta_batch
from moa_model.training_cost import _module as _meta_module
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS, tiny_unet
from tests.tiny_pipelines import tiny_sdxl_unet

SIZE = (8, 8)
SD15 = PUBLISHED_BASES["stable-diffusion-v1-5/stable-diffusion-v1-5"]
SD15_PARAMETERS = 859_520_964


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def cost(kind: str) -> TrainingCost:
    return count_training(_tiny_base(kind), IMAGE_DIM, SIZE, precision="fp32")


@pytest.fixture(scope="module")
def less(kind: str) -> TrainingCost:
    """With activation checkpointing."""
    return count_training(_tiny_base(kind), IMAGE_DIM, SIZE, precision="fp32", activation_checkpointing=True)


@pytest.fixture(scope="module")
def full_size() -> TrainingCost:
    return count_training(SD15, 768, (64, 64), precision="bf16")


def _unet(kind: str) -> UNet2DConditionModel:
    return tiny_unet() if kind == "sd1" else tiny_sdxl_unet()


def _tiny_base(kind: str = "sd1") -> BaseShape:
    pooled = TEXT_DIM if kind == "sdxl" else 0
    return BaseShape(dict(_unet(kind).config), latent_channels=4, pixels_per_latent=4, tokens=TOKENS, pooled_dim=pooled)


def _module(preservation: float = 0.0, kind: str = "sd1") -> MoATrainingModule:
    torch.manual_seed(0)
    unet = _unet(kind)
    adapter = MoAAdapter.for_unet(unet, IMAGE_DIM)
    scheduler = {"num_train_timesteps": 1000}
    return MoATrainingModule(unet, adapter, scheduler, lambda_preservation=preservation)


def _batch(rows: int, kind: str = "sd1") -> Batch:
    masks = torch.zeros(rows, 1, *SIZE)
    masks[..., 2:6, 1:5] = 1
    added: dict[str, Tensor] = {}
    if kind == "sdxl":
        added = {"pooled": torch.randn(rows, TEXT_DIM), "null_pooled": torch.zeros(TEXT_DIM)}
        added["time_ids"] = torch.full((rows, 6), 32.0)
    width = TEXT_DIM * (2 if kind == "sdxl" else 1)
    return Batch(
        **added,
        latents=torch.randn(rows, 4, *SIZE),
        text=torch.randn(rows, TOKENS, width),
        null_text=torch.randn(TOKENS, width),
        image_embeds=torch.randn(rows, 1, IMAGE_DIM),
        tokens=torch.full((rows, 1), 5),
        masks=masks,
        noise=torch.randn(rows, 4, *SIZE),
        timesteps=torch.arange(rows) * 100 + 7,
        dropped=torch.arange(rows) == 1,
    )


def _step_flops(module: MoATrainingModule, rows: int, kind: str = "sd1") -> tuple[int, int]:
    # The counter knows the plain kernel's products.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            total = module(_batch(rows, kind)).total
        with FlopCounterMode(display=False) as backward:
            total.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def _bytes(tensors: dict[str, Tensor] | list[Tensor]) -> int:
    return sum(one.nbytes for one in (tensors.values() if isinstance(tensors, dict) else tensors))


def test_parameters_gradients_average_and_optimizer_are_those_of_a_real_step(
    cost: TrainingCost, kind: str, tmp_path: Path
) -> None:
    module = _module(kind=kind)
    own = {id(parameter) for parameter in module.adapter.parameters()}
    assert cost.base_parameters == sum(p.numel() for p in module.unet.parameters() if id(p) not in own)
    assert cost.adapter_parameters == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert cost.expert_parameters == sum(
        p.numel() for name, p in module.adapter.named_parameters() if ".expert." in name
    )
    optimizer, ema = torch.optim.AdamW(module.optimizer_groups(1e-3)), EMA(module.adapter, 0.9)
    module(_batch(2, kind)).total.backward()
    optimizer.step()
    held = cost.memory(2, workers=2)
    assert held["gradients"] == held["gradient_buckets"] == _bytes([p.grad for p in module.adapter.parameters()])
    assert held["base"] == _bytes([p for p in module.unet.parameters() if id(p) not in own])
    assert held["adapter"] == _bytes(list(module.adapter.parameters()))
    assert held["optimizer"] == sum(_bytes(state) for state in optimizer.state.values())
    assert held["average"] == _bytes(ema.state_dict())
    assert cost.memory(2)["gradient_buckets"] == 0

    for name, data in Snapshot.take(module.adapter, ema, optimizer, 1).files():
        (tmp_path / name).write_bytes(data)
    files = [path.read_bytes() for path in tmp_path.glob("*.safetensors")]
    headers = sum(8 + int.from_bytes(file[:8], "little") for file in files)
    assert cost.checkpoint_bytes == sum(map(len, files)) - headers


@pytest.mark.parametrize("rows", [1, 3])
def test_flops_are_those_of_a_real_step_and_linear_in_its_samples(rows: int, cost: TrainingCost, kind: str) -> None:
    assert _step_flops(_module(kind=kind), rows, kind) == (rows * cost.forward_flops, rows * cost.backward_flops)


def test_preservation_is_a_forward_pass_more(cost: TrainingCost, kind: str) -> None:
    preserving = replace(cost, preserving=True)
    assert sum(_step_flops(_module(1.0, kind), 1, kind)) == preserving.sample_flops
    assert preserving.sample_flops - cost.sample_flops == cost.prior_flops > 0


@pytest.mark.parametrize("preserving", [False, True])
def test_flops_are_counted_alone_too(preserving: bool, cost: TrainingCost, kind: str) -> None:
    expected = replace(cost, preserving=preserving).sample_flops
    assert count_flops(_tiny_base(kind), IMAGE_DIM, SIZE, preserving=preserving) == expected


@pytest.mark.parametrize("rows", [1, 4])
def test_activations_are_what_autograd_keeps(rows: int, cost: TrainingCost, kind: str) -> None:
    module = _module(kind=kind)
    _, kept = saved_for_backward(lambda: module(_batch(rows, kind)), [*module.parameters(), *module.buffers()])
    # A CPU's attention copies keys and values head by head, and the loss keeps a few numbers whatever the batch.
    assert cost.memory(rows)["activations"] + cost.cast_bytes == pytest.approx(kept, rel=0.02)


def test_what_is_not_counted_twice() -> None:
    weight, value = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    _, kept = saved_for_backward(lambda: (value @ weight) * value.T, [weight])
    assert kept == 2 * value.nbytes  # the value, of which one is a view, and the product


def test_stable_diffusion_15_costs_what_is_known(full_size: TrainingCost) -> None:
    assert full_size.base_parameters == 859_520_964 and full_size.expert_parameters == 93_536_640
    assert full_size.prior_flops / 1e12 == pytest.approx(0.803, abs=5e-4)
    assert full_size.forward_flops / full_size.prior_flops == pytest.approx(1.2565, abs=1e-3)
    # 2.35 where every frozen layer passes a gradient on; what lies before the first expert does not.
    assert 2.23e12 < full_size.sample_flops < 2.35e12


def test_half_precision_keeps_copies_of_the_weights_and_fewer_activations(full_size: TrainingCost) -> None:
    module = _meta_module(SD15, 768, "middle")
    one, two = (_saved_bytes(module, _meta_batch(rows, SD15, 768, (64, 64)), "fp32").kept for rows in (1, 2))
    assert two == 2 * one  # single precision copies no weights
    # Copied are neither the norms' weights nor those that lie before the first expert.
    weights = 2 * (full_size.base_parameters + full_size.adapter_parameters)
    assert 0.9 * weights < full_size.cast_bytes < weights
    # Norms and what follows them stay in single precision.
    assert one / 2 < full_size.activation_bytes < one


def test_autocast_is_a_gpus() -> None:
    x = torch.randn(2, 4, 8, device="meta")
    with _Shapes(gpu=True, half=True):
        low = (functional.linear(x, x[0]), x @ x.mT, torch.einsum("bij,bkj->bik", x, x))
        attended = functional.scaled_dot_product_attention(x[None], x[None], x[None])
        full = (x.bfloat16().softmax(-1), functional.layer_norm(x.bfloat16(), (8,)), functional.group_norm(low[0], 2))
        as_they_come = (x.bfloat16() * 2, x + x.bfloat16())
    assert {tensor.dtype for tensor in (*low, attended)} == {torch.bfloat16}
    assert {tensor.dtype for tensor in full} == {torch.float32}
    assert [tensor.dtype for tensor in as_they_come] == [torch.bfloat16, torch.float32]


@given(
    st.integers(1, 10**4),
    st.integers(1, 64),
    st.integers(10**6, 10**11),
    st.sampled_from([0.0, 0.1]),
    st.integers(1, 8),
    st.sampled_from(["none", "fsdp-trained", "fsdp"]),
)
def test_memory_is_linear_and_the_most_samples_are_the_most(
    first: int, second: int, budget: int, reserve: float, workers: int, sharding: Sharding
) -> None:
    gathered = Gathered(always=500, unit=4000, unit_gradients=600, casts=2000, weights=220_000)
    cost = TrainingCost(
        10**5,
        10**4,
        100,
        1000,
        204,
        10**6,
        10**6,
        10**6,
        False,
        123_456,
        7000,
        {"fsdp": gathered, "fsdp-trained": gathered},
    )
    held = {rows: sum(cost.memory(rows, workers, sharding).values()) for rows in (0, first, first + second)}
    assert held[first + second] - held[first] == second * cost.activation_bytes
    most = cost.samples_within(budget, workers, reserve, sharding)

    def needed(rows: int) -> float:
        return held[0] + rows * cost.activation_bytes * (1 + reserve)

    assert needed(most + 1) > budget
    assert most == 0 or needed(most) <= budget * (1 + 1e-9)


@pytest.mark.parametrize("rows", [1, 3])
def test_activation_checkpointing_is_what_a_real_step_keeps_and_computes_again(
    rows: int, cost: TrainingCost, less: TrainingCost, kind: str
) -> None:
    module = prepare(_module(kind=kind), activation_checkpointing=True)
    assert _step_flops(module, rows, kind) == (rows * less.forward_flops, rows * less.backward_flops)
    assert less.forward_flops == cost.forward_flops
    assert cost.backward_flops < less.backward_flops < cost.backward_flops + cost.forward_flops
    _, kept = saved_for_backward(lambda: module(_batch(rows, kind)), [*module.parameters(), *module.buffers()])
    held = less.memory(rows)
    assert held["activations"] == pytest.approx(kept, rel=0.02)
    # Between the blocks and in the largest of them there is less than in all of them.
    assert 0 < held["recomputed"] < held["recomputed"] + held["activations"] < cost.memory(rows)["activations"]
    assert less.samples_within(10**8) > cost.samples_within(10**8)


def test_the_largest_block_is_a_transformer_block_at_the_highest_resolution() -> None:
    """Counted by itself: what the block keeps between what goes in and what comes out."""
    module = _meta_module(_tiny_base(), IMAGE_DIM, "middle")
    found = _checkpointed_bytes(module, _meta_batch(2, _tiny_base(), IMAGE_DIM, SIZE), "fp32").recomputed
    kept: list[int] = []

    def measure(block: Any, *inputs: Any) -> Any:
        known = [*module.parameters(), *(one for one in inputs if isinstance(one, Tensor))]
        output, size = saved_for_backward(lambda: block(*inputs), known)
        kept.append(size if type(block).__name__ == "BasicTransformerBlock" and inputs[0].shape[1] == 64 else 0)
        return output

    module.unet.enable_gradient_checkpointing(measure)
    with _Shapes(gpu=True):
        module(_meta_batch(2, _tiny_base(), IMAGE_DIM, SIZE))
    assert found == max(kept) > 0


def test_a_frozen_prior_in_half_precision_is_half_as_large_and_is_not_copied(full_size: TrainingCost) -> None:
    halved = count_training(SD15, 768, (64, 64), precision="bf16", frozen_precision="bf16")
    assert halved.memory(1)["base"] == 2 * SD15_PARAMETERS == full_size.memory(1)["base"] // 2
    # What is left are copies of what is trained, and the norms' weights in single precision.
    trained = 2 * halved.adapter_parameters
    assert 0.98 * trained < halved.cast_bytes < trained + 0.01 * halved.memory(1)["base"]
    assert halved.sample_flops == full_size.sample_flops
    assert halved.activation_bytes == pytest.approx(full_size.activation_bytes, rel=0.01)


def test_parts_are_a_share_of_all_that_is_held_and_of_nothing_that_works(cost: TrainingCost) -> None:
    """What a sharded training really holds is counted by `test_sharding.py`."""
    whole = cost.memory(3, 4)
    for sharding in get_args(Cut):
        parts = cost.memory(3, 4, sharding)
        for name in ("adapter", "gradients", "optimizer", "average"):
            assert parts[name] == -(-whole[name] // 4), name
        assert parts["base"] == (-(-whole["base"] // 4) if sharding == "fsdp" else whole["base"])
        assert parts["activations"] == whole["activations"]
        assert parts["gradient_buckets"] == 0 < whole["gradient_buckets"]
        assert parts["gathered"] == cost.gathered[sharding].most > 0 == whole["gathered"]
        assert cost.memory(3, 1, sharding) == cost.memory(3, 1), "one worker has nobody to share with"


def test_what_is_sent_in_a_step(cost: TrainingCost) -> None:
    gradients = cost.gradient_bytes
    trained, weights = (cost.gathered[cut].weights for cut in get_args(Cut))
    assert trained == gradients < weights  # in single precision
    assert cost.exchanged(5, 1) == cost.exchanged(5, 1, "fsdp") == 0
    assert cost.exchanged(5, 4) == 2 * gradients * 3 / 4  # a ring's sum, and the sum to all; once a step
    assert cost.exchanged(5, 4, "fsdp") == 5 * (2 * weights + gradients) * 3 / 4
    assert cost.exchanged(5, 4, "fsdp-trained") == 5 * 3 * gradients * 3 / 4
    assert replace(cost, preserving=True).exchanged(1, 2, "fsdp") == (3 * weights + gradients) / 2


def test_half_precision_gathers_half(full_size: TrainingCost) -> None:
    trained, all_of_it = (full_size.gathered[cut] for cut in get_args(Cut))
    prompt, own = full_size.prompt_parameters, full_size.adapter_parameters
    assert trained.weights == 2 * own + 2 * prompt  # the prompt's stay single
    assert all_of_it.weights == pytest.approx(2 * (full_size.base_parameters + own) + 2 * prompt, rel=1e-3)
    assert 1.9 * prompt < all_of_it.casts <= 2 * prompt  # all but its norms and biases
    # The prior's copies are there where it is whole, and those of the experts where nothing is gathered.
    assert all_of_it.casts < trained.casts < full_size.cast_bytes
    assert full_size.cast_bytes - trained.casts == pytest.approx(2 * (own - prompt), rel=0.02)
    assert trained.always == 0 < all_of_it.always
