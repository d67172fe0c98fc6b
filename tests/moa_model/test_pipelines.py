"""MoA on the stock pipelines of three bases: what a user relies on, in every one of them."""

import warnings
from typing import Any

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from diffusers.models.attention_processor import XFormersAttnProcessor
from torch import Tensor

from infra.errors import UserError
from moa_model import MoAAdapter, Subject
from tests.moa_model.conftest import PROMPT, trained_like
from tests.tiny_models import IMAGE_DIM, TOKENS, tiny_pipeline
from tests.tiny_pipelines import BASES, KINDS, Case, tiny_case

COUPLE = "a man and a woman"


def _fresh(case: Case) -> MoAAdapter:
    return trained_like(MoAAdapter.for_unet(case.pipe.unet, IMAGE_DIM))


def _differs(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def _route(adapter: MoAAdapter, prior: bool) -> None:
    """Routers that give every pixel to one expert."""
    with torch.no_grad():
        for layer in adapter.layers:
            layer.router.weight.zero_()
            layer.router.bias.copy_(torch.tensor([1e4, -1e4] if prior else [-1e4, 1e4]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_the_prior_is_the_stock_picture_and_the_subject_changes_it(base: str, kind: str, feature: Tensor) -> None:
    case = tiny_case(base, kind)
    stock, processors = case.draw(PROMPT), case.pipe.unet.attn_processors
    adapter = _fresh(case).attach(case.pipe)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    assert torch.equal(case.draw(PROMPT), stock)
    assert torch.equal(case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, {})), stock)
    with adapter.prior_only():
        assert torch.equal(case.draw(PROMPT, bound), stock)
    man = case.draw(PROMPT, bound)
    assert man.isfinite().all() and _differs(man, stock)
    assert _differs(case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, {"man": -feature})), man)
    _route(adapter, prior=True)
    assert torch.equal(case.draw(PROMPT, bound), stock)
    adapter.detach(case.pipe)
    assert all(case.pipe.unet.attn_processors[name] is one for name, one in processors.items())
    assert not case.pipe.unet._forward_pre_hooks
    assert torch.equal(case.draw(PROMPT), stock)


def test_controls_and_masks_count_beside_a_subject(feature: Tensor) -> None:
    for kind, other in (("control", {"controlnet_conditioning_scale": 0.0}), ("inpaint", {"strength": 0.6})):
        case = tiny_case("sd1", kind)
        bound = _fresh(case).attach(case.pipe).bind(case.pipe, PROMPT, {"man": feature})
        assert _differs(case.draw(PROMPT, bound), case.draw(PROMPT, bound, **other))


@pytest.mark.parametrize("base", BASES)
def test_image_to_image_counts_a_subjects_steps_from_its_own_first(base: str, feature: Tensor) -> None:
    case = tiny_case(base, "image")  # strength ½ of 4 steps: it begins in the middle of the schedule
    stock = case.draw(PROMPT)
    adapter = _fresh(case).attach(case.pipe)
    drawn = {
        steps: case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, {"man": Subject(feature, steps=steps)}))
        for steps in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
    }
    assert all(_differs(picture, stock) for picture in drawn.values())
    assert _differs(drawn[0.0, 0.5], drawn[0.0, 1.0]) and _differs(drawn[0.5, 1.0], drawn[0.0, 1.0])


@pytest.mark.parametrize("base", BASES)
def test_a_negative_prompt_counts_for_both_experts_and_carries_no_subject(base: str, feature: Tensor) -> None:
    case = tiny_case(base)
    negative = {"negative_prompt": "a man, too blue"}
    stock = case.draw(PROMPT, **negative)
    adapter = _fresh(case).attach(case.pipe)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    with adapter.prior_only():
        assert torch.equal(case.draw(PROMPT, bound, **negative), stock)
    with adapter.recording() as steps:
        drawn = case.draw(PROMPT, bound, **negative)
    assert _differs(drawn, case.draw(PROMPT, bound)) and _differs(drawn, stock)
    assert steps
    for subject in steps[-1].subject().values():
        assert not subject[0].any() and subject[1].any()  # the negative prompt's own "man" is nobody
    _route(adapter, prior=False)
    assert _differs(case.draw(PROMPT, bound, **negative), case.draw(PROMPT, bound))


@pytest.mark.parametrize("base", BASES)
def test_rows_are_bound_to_their_own_prompt(base: str, feature: Tensor) -> None:
    """Three prompts, two images each: every picture is what its prompt and subject give alone."""
    case = tiny_case(base)
    adapter = _fresh(case).attach(case.pipe)
    prompts = [PROMPT, "a woman on the beach", "a photo"]
    subjects: list[dict[str, Tensor]] = [{"man": feature}, {"woman": -feature}, {}]
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    for guidance in (3.0, 1.0):
        settings = {"guidance_scale": guidance, "num_inference_steps": 2}
        bound = adapter.bind(case.pipe, prompts, subjects)
        together = case.draw(prompts, bound, num_images_per_prompt=2, latents=latents, **settings)
        for row, (prompt, by_word) in enumerate(zip(prompts, subjects, strict=True)):
            one = adapter.bind(case.pipe, prompt, by_word)
            place = slice(2 * row, 2 * row + 2)
            alone = case.draw(prompt, one, num_images_per_prompt=2, latents=latents[place], **settings)
            torch.testing.assert_close(together[place], alone, rtol=1e-3, atol=1e-4)
            assert _differs(alone[0], alone[1])
    swapped = adapter.bind(case.pipe, prompts, [{"man": -feature}, {"woman": feature}, {}])
    other = case.draw(prompts, swapped, num_images_per_prompt=2, latents=latents, **settings)
    assert _differs(other[0], together[0]) and _differs(other[2], together[2])
    torch.testing.assert_close(other[4:], together[4:])


def _embedded(case: Case, prompt: str) -> dict[str, Tensor]:
    """The arguments that stand for prompt and negative prompt."""
    with torch.no_grad():
        given = case.pipe.encode_prompt(
            prompt=prompt, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names[: len(given)], given, strict=True))


@pytest.mark.parametrize("base", BASES)
def test_weighted_embeddings_are_taken_as_given_and_the_binding_holds(base: str, feature: Tensor) -> None:
    case = tiny_case(base)
    given = _embedded(case, COUPLE)
    weighted = dict(given)
    weighted["prompt_embeds"] = given["prompt_embeds"].clone()
    weighted["prompt_embeds"][:, 7] *= 1.6  # another word than the subject's
    stock = case.draw(None, **weighted)
    adapter = _fresh(case).attach(case.pipe)
    bound = adapter.bind(case.pipe, COUPLE, {"man": feature})
    assert torch.equal(case.draw(None, bound, **given), case.draw(COUPLE, bound))
    with adapter.prior_only():
        assert torch.equal(case.draw(None, bound, **weighted), stock)
    cross = [layer for layer in adapter.layers if layer.shape.cross][0]
    seen: list[Tensor] = []
    cross.expert.key_value.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    assert _differs(case.draw(None, bound, **weighted), case.draw(None, bound, **given))
    assert torch.equal(seen[0][1:], weighted["prompt_embeds"])  # what the expert makes its keys of is the user's text
    _route(adapter, prior=False)  # the experts themselves heed the weights
    assert _differs(case.draw(None, bound, **weighted), case.draw(None, bound, **given))


def test_embeddings_too_short_for_the_subjects_place_are_refused(feature: Tensor) -> None:
    case = tiny_case("sd1")
    given = {name: each[:, :4] for name, each in _embedded(case, PROMPT).items()}
    bound = _fresh(case).attach(case.pipe).bind(case.pipe, PROMPT, {"man": feature})
    with pytest.raises(UserError, match="have 4 tokens"):
        case.draw(None, bound, **given)


@pytest.mark.parametrize("base", BASES)
def test_a_prompt_that_is_cut_names_who_is_lost_and_keeps_the_others(base: str, feature: Tensor) -> None:
    case = tiny_case(base)
    adapter = _fresh(case).attach(case.pipe)
    prompt = "a woman" + " o" * TOKENS + " man"
    with pytest.warns(UserWarning, match='"man" is lost') as told:
        bound = adapter.bind(case.pipe, prompt, {"man": feature, "woman": -feature})
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        woman = adapter.bind(case.pipe, prompt, {"woman": -feature})
    assert torch.equal(case.draw(prompt, bound), case.draw(prompt, woman))
    assert _differs(case.draw(prompt, woman), case.draw(prompt))


def test_a_repeated_word_is_bound_by_its_occurrence(feature: Tensor) -> None:
    case = tiny_case("sdxl")
    adapter = _fresh(case).attach(case.pipe)
    prompt = "a man beside a man"
    drawn = [
        case.draw(prompt, adapter.bind(case.pipe, prompt, {"man": chosen}))
        for chosen in ([feature], [None, feature], [feature, -feature], [-feature, feature])
    ]
    assert all(_differs(one, other) for at, one in enumerate(drawn) for other in drawn[:at])


# ---- a LoRA beside the adapter


def _lora(unet: torch.nn.Module, prefix: str = "unet.") -> dict[str, Tensor]:
    """A file of rank 2 for all attention projections, as diffusers' own trainers write it."""
    generator = torch.Generator().manual_seed(4)
    state: dict[str, Tensor] = {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            for part, shape in (("A", (2, module.in_features)), ("B", (module.out_features, 2))):
                state[f"{prefix}{name}.lora_{part}.weight"] = torch.randn(shape, generator=generator)
    return state


@pytest.mark.parametrize("base", BASES)
def test_a_lora_changes_the_prior_branch_alone(base: str, feature: Tensor) -> None:
    plain, case = tiny_case(base), tiny_case(base)
    plain.pipe.load_lora_weights(_lora(plain.pipe.unet))
    stock = {scale: plain.draw(PROMPT, {"scale": scale}) for scale in (1.0, 0.4)}
    adapter = _fresh(case).attach(case.pipe)
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    adapter.prior_only_above = 1000  # every step, so that the picture is one expert's
    _route(adapter, prior=False)
    experts = case.draw(PROMPT, bound)
    case.pipe.load_lora_weights(_lora(case.pipe.unet))
    # Not bit for bit: a LoRA's sum has another layout in memory, and a CPU's products of small matrices feel that.
    torch.testing.assert_close(case.draw(PROMPT, bound), experts, rtol=1e-4, atol=1e-4)
    assert _differs(stock[1.0], plain.draw(PROMPT, {"scale": 0.0}))
    _route(adapter, prior=True)
    assert torch.equal(case.draw(PROMPT, bound), stock[1.0])
    assert torch.equal(case.draw(PROMPT, bound | {"scale": 0.4}), stock[0.4])
    assert _differs(stock[1.0], stock[0.4])
    routers = {name for name in before if "router" in name}
    assert all(torch.equal(adapter.state_dict()[name], kept) for name, kept in before.items() if name not in routers)
    case.pipe.unload_lora_weights()
    adapter.detach(case.pipe)
    plain.pipe.unload_lora_weights()
    assert torch.equal(case.draw(PROMPT), plain.draw(PROMPT))


def test_a_lora_of_ones_own_is_the_priors_too(feature: Tensor) -> None:
    """``unet.add_adapter`` with bare suffixes, to train one: it finds no expert, and a new adapter copies no LoRA."""
    from peft import LoraConfig

    case = tiny_case("sd1")
    adapter = _fresh(case).attach(case.pipe)
    case.pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    wrapped = [name for name, _ in case.pipe.unet.named_modules() if name.endswith("lora_A")]
    assert wrapped and not any("processor" in name for name in wrapped)
    adapter.detach(case.pipe)
    hosts = [module for module in case.pipe.unet.modules() if hasattr(module, "to_q")]
    fresh = MoAAdapter.for_unet(case.pipe.unet, IMAGE_DIM)
    queries = {layer.expert.query.weight.sum().item() for layer in fresh.layers}
    assert queries == {host.to_q.base_layer.weight.sum().item() for host in hosts}


# ---- what would replace the layers


def _ip_adapter(unet: Any) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter's file: image_proj and a pair of projections per cross-attention, numbered 1, 3, 5, …"""
    dims = unet.config.cross_attention_dim
    tower = {"proj.weight": torch.randn(4 * dims, IMAGE_DIM), "proj.bias": torch.zeros(4 * dims)}
    tower |= {"norm.weight": torch.ones(dims), "norm.bias": torch.zeros(dims)}
    layers: dict[str, Tensor] = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            layers |= {f"{number}.to_{part}_ip.weight": torch.randn(width, dims) for part in "kv"}
    return {"image_proj": tower, "ip_adapter": layers}


def _load_ip_adapter(pipe: Any) -> None:
    where: dict[str, Any] = {"subfolder": "", "weight_name": "", "image_encoder_folder": None}
    pipe.load_ip_adapter(_ip_adapter(pipe.unet), **where)


def _processors(pipe: Any) -> list[int]:
    return [id(processor) for processor in pipe.unet.attn_processors.values()]


@pytest.mark.parametrize(
    ("load", "names"),
    [
        (lambda pipe: _load_ip_adapter(pipe), "IPAdapterAttnProcessor2_0"),
        (lambda pipe: pipe.unet.set_attn_processor(XFormersAttnProcessor()), "XFormersAttnProcessor"),
        (lambda pipe: pipe.enable_attention_slicing(1), "SlicedAttnProcessor"),
        (lambda pipe: pipe.unet.fuse_qkv_projections(), "FusedAttnProcessor2_0"),
    ],
    ids=["ip-adapter", "xformers", "slicing", "fused"],
)
def test_what_was_loaded_before_is_refused_by_attach(load, names: str) -> None:
    case = tiny_case("sd1")
    adapter = _fresh(case)
    load(case.pipe)
    before = _processors(case.pipe)
    with pytest.raises(UserError, match=names) as refusal:
        adapter.attach(case.pipe)
    assert "\n" not in str(refusal.value)
    assert _processors(case.pipe) == before
    assert not adapter.is_attached(case.pipe) and not case.pipe.unet._forward_pre_hooks


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("how", ["slicing", "xformers"])
def test_what_replaces_the_layers_later_is_refused_by_bind_and_by_the_call(
    base: str, how: str, feature: Tensor
) -> None:
    case = tiny_case(base)
    stock = case.draw(PROMPT)
    adapter = _fresh(case).attach(case.pipe)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    if how == "slicing":
        case.pipe.enable_attention_slicing(1)
    else:
        case.pipe.unet.set_attn_processor(XFormersAttnProcessor())
    before = _processors(case.pipe)
    for attempt in (
        lambda: adapter.bind(case.pipe, PROMPT, {"man": feature}),
        lambda: case.draw(PROMPT, bound),  # bound earlier: the subject would be lost without a word
        lambda: trained_like(MoAAdapter(adapter.config)).attach(case.pipe),
    ):
        with pytest.raises(UserError, match="AttnProcessor") as refusal:
            attempt()
        assert "\n" not in str(refusal.value)
    assert _processors(case.pipe) == before
    adapter.detach(case.pipe)  # as the sentence says
    assert torch.equal(case.draw(PROMPT), stock)
    adapter.attach(case.pipe)
    assert _differs(case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, {"man": feature})), stock)


def test_an_ip_adapter_is_refused_while_moa_is_attached(feature: Tensor) -> None:
    case = tiny_case("sd1")
    adapter = _fresh(case).attach(case.pipe)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    drawn, before = case.draw(PROMPT, bound), _processors(case.pipe)
    for attempt in (lambda: _load_ip_adapter(case.pipe), case.pipe.unload_ip_adapter):
        with pytest.raises(UserError, match="detach the adapter first"):
            attempt()
    assert _processors(case.pipe) == before
    assert torch.equal(case.draw(PROMPT, bound), drawn)
    adapter.detach(case.pipe)
    _load_ip_adapter(case.pipe)
    case.pipe.unload_ip_adapter()
    adapter.attach(case.pipe)
    assert torch.equal(case.draw(PROMPT, bound), drawn)


def test_perturbed_attention_guidance_is_refused(feature: Tensor) -> None:
    pipe = tiny_pipeline()
    perturbed = StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False)
    adapter = trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM))
    before = _processors(pipe)
    with pytest.raises(UserError, match="StableDiffusionPAGPipeline"):
        adapter.attach(perturbed)
    assert _processors(pipe) == before and not pipe.unet._forward_pre_hooks
    adapter.attach(pipe)
    with pytest.raises(UserError, match="StableDiffusionPAGPipeline"):
        adapter.bind(perturbed, PROMPT, {"man": feature})


@pytest.mark.parametrize("base", BASES)
def test_saved_and_loaded_it_draws_the_same_pixels(base: str, feature: Tensor, tmp_path) -> None:
    case = tiny_case(base)
    adapter = _fresh(case).attach(case.pipe)
    before = case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, {"man": feature}), output_type="np")
    adapter.save_pretrained(tmp_path)
    adapter.detach(case.pipe)
    loaded = MoAAdapter.from_pretrained(tmp_path).attach(case.pipe)
    after = case.draw(PROMPT, loaded.bind(case.pipe, PROMPT, {"man": feature}), output_type="np")
    assert (before == after).all()
