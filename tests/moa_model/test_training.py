import hashlib

import pytest
import torch
from torch.nn import functional

from infra.errors import UserError
from moa_model import Batch, MoAAdapter, MoATrainingModule
from moa_model.losses import enlarge
from moa_model.training import rate_scale
from tests.moa_model.conftest import make_batch, sdxl_batch, trained_like
from tests.tiny_models import IMAGE_DIM, tiny_pipeline
from tests.tiny_pipelines import BASES, tiny_case


def _module(prediction_type: str = "v_prediction", **settings) -> MoATrainingModule:
    pipe = tiny_pipeline(prediction_type=prediction_type)
    adapter = trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM))
    return MoATrainingModule(pipe.unet, adapter, pipe.scheduler.config, **settings)


def _module_of(base: str, **settings) -> MoATrainingModule:
    pipe = tiny_case(base).pipe
    return MoATrainingModule(
        pipe.unet, trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM)), pipe.scheduler.config, **settings
    )


def _digest(unet: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        if ".processor." not in name:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_gradients_reach_experts_routers_and_prompt_and_nothing_else() -> None:
    module = _module()
    module(make_batch(scale=2)).total.backward()
    trained = {name for name, _ in module.adapter.named_parameters()}
    assert {name.split(".")[2] for name in trained if name.startswith("layers")} == {"expert", "router"}
    for name, parameter in module.adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    own = set(map(id, module.adapter.parameters()))
    base = [parameter for parameter in module.unet.parameters() if id(parameter) not in own]
    assert base and not any(parameter.requires_grad or parameter.grad is not None for parameter in base)


def test_a_fresh_adapter_trains_and_leaves_the_base_as_it_was() -> None:
    batch = make_batch(scale=2)
    pipe = tiny_pipeline()
    adapter = MoAAdapter.for_unet(pipe.unet, IMAGE_DIM)
    module = MoATrainingModule(pipe.unet, adapter, pipe.scheduler.config)
    before, start = _digest(pipe.unet), {n: p.detach().clone() for n, p in adapter.named_parameters()}
    optimizer = torch.optim.AdamW(module.optimizer_groups(1e-3), weight_decay=0.0)
    history = []
    for _ in range(8):
        losses = module(batch)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(losses.total.item())
    assert history[-1] < history[0]
    assert _digest(pipe.unet) == before
    assert all(not torch.equal(start[name], parameter) for name, parameter in adapter.named_parameters())


@pytest.mark.parametrize("ours", [{}, {"router_foreground": 0.4, "lambda_preservation": 2.0}], ids=["paper", "ours"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_losses_are_the_papers_in_float64(prediction_type: str, ours: dict[str, float]) -> None:
    module = _module(prediction_type, lambda_router=0.3, lambda_object=0.7, **ours)
    module.double()
    batch = make_batch(dtype=torch.float64)
    module.scheduler.alphas_cumprod = module.scheduler.alphas_cumprod.double()
    shown, routers, attention = [], {}, {}
    module.unet.register_forward_hook(lambda m, args, output: shown.append((args[0], output[0])))
    for index, layer in enumerate(module.adapter.layers):
        layer.router.register_forward_hook(
            lambda m, args, output, index=index: routers.update({index: output.softmax(-1)[..., 0]})
        )
        if layer.shape.cross:
            layer.expert.query.register_forward_hook(lambda m, a, o, i=index: attention.setdefault(i, []).append(o))
            layer.expert.key_value.register_forward_hook(lambda m, a, o, i=index: attention.setdefault(i, []).append(o))
    losses = module(batch)

    alpha = module.scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
    sample, prediction = shown[0]
    torch.testing.assert_close(sample, noisy, rtol=1e-10, atol=1e-10)
    error = (prediction - (velocity if prediction_type == "v_prediction" else batch.noise)) ** 2
    masked, router, balance, preservation = [], [], [], []
    with module.adapter.prior_only():
        stock = module.unet(
            noisy,
            batch.timesteps,
            torch.where(batch.dropped[:, None, None], batch.null_text, batch.text),
            return_dict=False,
        )[0]
    size = (8, 8)
    for b in range(4):
        union = ((batch.masks[b, 0] + batch.masks[b, 1]) > 0).double()
        masked.append((error[b].mean(0) * union).sum() / union.sum())
        layers = range(4, 26)  # 11 middle blocks of two layers
        prior = sum(enlarge(routers[i][b], size) for i in layers) / 22
        mirror = ours.get("router_foreground", 0) * (union * prior) ** 2
        router.append((((1 - union) * (1 - prior)) ** 2 + mirror).mean())
        away = ((prediction[b] - stock[b]) ** 2).mean(0)
        preservation.append((away * (1 - union)).sum() / (1 - union).sum() if ours else torch.tensor(0.0).double())
        terms = []
        for s in range(2):
            token = int(batch.tokens[b, s])
            if token < 0 or batch.dropped[b]:
                continue
            mask = batch.masks[b, s]
            for i in range(5, 26, 2):
                key_value, query = (x[b] for x in attention[i])
                query, key = (x.unflatten(-1, (2, -1)) for x in (query, key_value.chunk(2, dim=-1)[0]))
                scores = torch.einsum("nhd,thd->hnt", query, key) / query.shape[-1] ** 0.5
                a = enlarge(functional.softmax(scores, -1)[..., token].mean(0), size)
                terms.append((a * (1 - mask)).sum() / (1 - mask).sum() - (a * mask).sum() / mask.sum())
        balance.append(sum(terms) / len(terms) if terms else torch.tensor(0.0).double())
    expected = [torch.stack(part).mean() for part in (masked, router, balance, preservation)]
    expected.append(expected[0] + 0.3 * expected[1] + 0.7 * expected[2] + 2.0 * expected[3])
    actual = (losses.masked, losses.router, losses.object, losses.preservation, losses.total)
    for loss, by_hand in zip(actual, expected, strict=True):
        torch.testing.assert_close(loss, by_hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("base", ["sd1", "sdxl"])
def test_two_workers_have_the_gradient_of_one_in_float64(base: str) -> None:
    def gradients(parts: list[Batch]) -> list[torch.Tensor]:
        module = _module_of(base, lambda_object=0.5).double()
        module.scheduler.alphas_cumprod = module.scheduler.alphas_cumprod.double()
        for part in parts:
            (module(part).total / len(parts)).backward()
        return [parameter.grad for parameter in module.adapter.parameters()]

    batch = make_batch(dtype=torch.float64)
    batch = sdxl_batch(batch) if base == "sdxl" else batch
    for whole, split in zip(gradients([batch]), gradients([batch.rows(0, 2), batch.rows(2, 4)]), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-9, atol=1e-13)


def test_sdxl_is_told_sizes_and_a_pooled_text_and_of_a_dropped_sample_the_empty_prompts(batch: Batch) -> None:
    """As a stock pipeline guides: the unconditional half has the empty prompt's text, and the same sizes."""
    module, batch = _module_of("sdxl"), sdxl_batch(batch)
    told: list[dict[str, torch.Tensor]] = []
    module.unet.register_forward_pre_hook(
        lambda m, args, kwargs: told.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    module(batch)
    (added,) = told
    assert torch.equal(added["time_ids"], batch.time_ids) and added["time_ids"].dtype == torch.float32
    for row in range(4):
        expected = batch.null_pooled if batch.dropped[row] else batch.pooled[row]
        assert torch.equal(added["text_embeds"][row], expected)
    assert batch.dropped.tolist() == [False, False, True, False]
    assert make_batch().added_conditions is None


def test_a_dropped_condition_sees_neither_text_nor_subject(batch: Batch) -> None:
    module = _module()
    dropped = Batch(**vars(batch) | {"dropped": torch.ones(4, dtype=torch.bool)})
    other = Batch(**vars(dropped) | {"text": batch.text + 1, "image_embeds": -batch.image_embeds})
    assert module(dropped).total == module(other).total
    assert module(dropped).object == 0
    assert module(batch).total != module(Batch(**vars(batch) | {"image_embeds": -batch.image_embeds})).total


def test_every_timestep_that_is_drawn_is_trained(batch: Batch) -> None:
    """Also those at which the released adapter will leave the picture to the prior."""
    pipe = tiny_pipeline()
    adapter = trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM, prior_only_above=300))
    module = MoATrainingModule(pipe.unet, adapter, pipe.scheduler.config)
    early = Batch(**vars(batch) | {"timesteps": torch.full((4,), 750)})
    other = Batch(**vars(early) | {"image_embeds": -batch.image_embeds})
    assert module(early).masked != module(other).masked
    assert adapter.config.prior_only_above == 300


def test_settings(batch: Batch) -> None:
    assert _module(blocks="all").blocks == set(range(16))
    assert _module().blocks == set(range(2, 13))
    mean, total = _module(), _module(router_normalisation="sum")
    torch.testing.assert_close(mean(batch).router * 64, total(batch).router)
    others, routers = mean.optimizer_groups(1e-3, 2.0)
    assert (others["lr"], routers["lr"]) == (1e-3, 2e-3)
    count = len(others["params"]) + len(routers["params"])
    assert count == len(list(mean.adapter.parameters())) and len(routers["params"]) == 32 * 2
    with pytest.raises(UserError, match="sample"):
        _module("sample")


def test_the_rate_warms_up_and_then_stays_or_falls_to_zero() -> None:
    constant = [rate_scale(step, 10, 2) for step in range(10)]
    assert constant == [0.5] + [1.0] * 9
    cosine = [rate_scale(step, 10, 2, "cosine") for step in range(11)]
    assert cosine[:3] == [0.5, 1.0, 1.0] and cosine[6] == pytest.approx(0.5) and cosine[10] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in zip(cosine[2:], cosine[3:], strict=False))
    assert rate_scale(0, 1, 0, "cosine") == 1.0


def test_an_empty_background_asks_nothing_of_it(batch: Batch) -> None:
    module = _module(lambda_preservation=1.0)
    everywhere = Batch(**vars(batch) | {"masks": torch.ones_like(batch.masks)})
    assert module(everywhere).preservation == 0
    assert module(batch).preservation > 0


@pytest.mark.parametrize("base", BASES)
def test_every_base_trains_and_stays_as_it_was(base: str) -> None:
    """Gradients reach every expert, router and the prompt MLP and nothing else."""
    batch = make_batch(scale=2)
    module = _module_of(base, lambda_preservation=1.0)
    adapter, unet = module.adapter, module.unet
    if base == "sdxl":
        batch = sdxl_batch(batch)
    before, own = _digest(unet), set(map(id, adapter.parameters()))
    others = [parameter for parameter in unet.parameters() if id(parameter) not in own]
    optimizer = torch.optim.AdamW(module.optimizer_groups(1e-3))
    for _ in range(3):
        losses = module(batch)
        losses.total.backward()
        for name, parameter in adapter.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in others)
        optimizer.step()
        optimizer.zero_grad()
    assert _digest(unet) == before
