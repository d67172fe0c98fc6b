"""Stable Diffusion 1, 2 and XL taken apart and put together again: what is drawn stays what it was."""

from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline
from PIL import Image

from moa_model import MoAAdapter
from moa_model.applications import invert, regenerate, time_lapse, with_control
from moa_model.stock_pipelines import added_conditions, encoded, is_sdxl, rebuilt
from tests.moa_model.conftest import trained_like
from tests.tiny_models import IMAGE_DIM
from tests.tiny_pipelines import BASES, SIDE, Case, tiny_case

PROMPT = "a photo of a man"
SIZE = {"height": SIDE, "width": SIDE}


@pytest.fixture(params=BASES)
def case(request: pytest.FixtureRequest) -> Case:
    return tiny_case(request.param)


def _attached(pipe: Any) -> MoAAdapter:
    return trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM)).attach(pipe)


def test_an_encoded_prompt_draws_what_the_prompt_draws(case: Case) -> None:
    assert torch.equal(case.draw(None, **encoded(case.pipe, PROMPT)), case.draw(PROMPT))
    alone = encoded(case.pipe, PROMPT, guided=False)
    assert set(alone) == {"prompt_embeds", "pooled_prompt_embeds"} - (
        set() if is_sdxl(case.pipe) else {"pooled_prompt_embeds"}
    )
    assert torch.equal(case.draw(None, guidance_scale=1.0, **alone), case.draw(PROMPT, guidance_scale=1.0))


@pytest.mark.parametrize("zeros", [True, False])
def test_a_rebuilt_pipeline_draws_the_same(case: Case, zeros: bool) -> None:
    """Also in its unconditional half, which SDXL's configuration decides, and with the adapter where it was."""
    if is_sdxl(case.pipe):
        case.pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    adapter = _attached(case.pipe)
    bound = {"man": torch.ones(IMAGE_DIM)}
    before = case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, bound))
    other = Case(rebuilt(case.pipe, type(case.pipe)), case.call)
    assert adapter.is_attached(other.pipe)
    assert torch.equal(other.draw(PROMPT, adapter.bind(other.pipe, PROMPT, bound)), before)


def test_added_conditions_are_those_of_the_pipelines_own_call(case: Case) -> None:
    told: list[Any] = []
    case.pipe.unet.register_forward_pre_hook(
        lambda m, args, kwargs: told.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    case.draw(PROMPT, guidance_scale=1.0, **SIZE)
    ours = added_conditions(case.pipe, encoded(case.pipe, PROMPT, guided=False), (SIDE, SIDE))
    if not is_sdxl(case.pipe):
        assert told[0] is None and ours is None
        return
    assert ours is not None and ours.keys() == told[0].keys()
    assert all(torch.equal(ours[name], each) for name, each in told[0].items())


def test_a_photo_is_restored_from_its_noise() -> None:
    """The inversion tells SDXL the sizes that the drawing tells it: with others it restores a tenth as well."""
    pipe = tiny_case("sdxl").pipe
    with torch.no_grad():  # a random U-Net's steps are too steep to be turned round
        for parameter in pipe.unet.conv_out.parameters():
            parameter.mul_(0.02)
    adapter = _attached(pipe)
    photo = Image.effect_noise((SIDE, SIDE), 60).convert("RGB")
    inverted = invert(pipe, photo, PROMPT, steps=10, refinements=4)
    with torch.no_grad():
        decoded = pipe.vae.decode(inverted.latents[-1] / pipe.vae.config.scaling_factor).sample
    (known,) = pipe.image_processor.postprocess(decoded, "pil")
    restored = np.asarray(regenerate(pipe, adapter, inverted, {}), float)
    assert np.abs(restored - np.asarray(known, float)).mean() < 1  # of 255 grey levels
    cast = {"man": torch.full((IMAGE_DIM,), 3.0)}
    assert np.abs(np.asarray(regenerate(pipe, adapter, inverted, cast), float) - restored).mean() > 0


def test_a_time_lapses_ends_are_the_plain_pictures_of_sdxl() -> None:
    """The pooled text turns with the states."""
    pipe = tiny_case("sdxl").pipe
    adapter, man = _attached(pipe), torch.ones(IMAGE_DIM)
    call = {"num_inference_steps": 2, **SIZE}
    frames = time_lapse(pipe, adapter, "a man", ("man", "of"), man, 3, 5, **call)
    for prompt, word, frame in (("a man", "man", frames[0]), ("a of", "of", frames[-1])):
        bound = adapter.bind(pipe, prompt, {word: man})
        noise = torch.Generator().manual_seed(5)
        plain = pipe(prompt, cross_attention_kwargs=bound, generator=noise, **call).images[0]
        assert np.array_equal(frame, plain), word
    assert not np.array_equal(frames[0], frames[-1])


def test_a_controlnet_stands_beside_sdxl(tmp_path: Path) -> None:
    case = tiny_case("sdxl")
    torch.manual_seed(0)
    ControlNetModel.from_unet(case.pipe.unet, conditioning_embedding_out_channels=(8, 8, 8)).save_pretrained(tmp_path)
    adapter = _attached(case.pipe)
    controlled = with_control(case.pipe, str(tmp_path))
    assert isinstance(controlled, StableDiffusionXLControlNetPipeline) and adapter.is_attached(controlled)
    pose = Image.new("RGB", (SIDE, SIDE))
    led = Case(controlled, {"image": pose} | SIZE)
    # A ControlNet begins at zero: until it has learned something the picture is the pipeline's own.
    assert torch.equal(led.draw(PROMPT), case.draw(PROMPT, **SIZE))
