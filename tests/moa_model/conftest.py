from collections.abc import Callable
from dataclasses import replace

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from moa_model import Batch, MoAAdapter, draw
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS, tiny_pipeline

PROMPT = "a photo of a man"


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline()


def trained_like(adapter: MoAAdapter, seed: int = 1) -> MoAAdapter:
    """Weights that training could have made: nothing at its starting value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapter


@pytest.fixture
def adapter(pipe: StableDiffusionPipeline) -> MoAAdapter:
    return trained_like(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM))


@pytest.fixture
def feature() -> Tensor:
    return torch.randn(IMAGE_DIM, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def paint() -> Callable[..., np.ndarray]:
    """Generate with a fixed seed and few steps."""

    def _paint(pipe: StableDiffusionPipeline, prompt: str | list[str] = PROMPT, seed: int = 3, **kwargs) -> np.ndarray:
        settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"} | kwargs
        return pipe(prompt, generator=torch.Generator().manual_seed(seed), **settings).images

    return _paint


@pytest.fixture
def batch() -> Batch:
    """Four samples: one subject, two subjects, one dropped, one on the first and one on the last timestep."""
    return make_batch()


def make_batch(count: int = 4, dtype: torch.dtype = torch.float32, scale: int = 1) -> Batch:
    """Latents of 8 ``scale`` by 8 ``scale``.

    At scale 1 the middle block has one position: its softmax is 1 whatever is asked, and its self-attention's query
    has no gradient but for rounding. Who looks at every gradient takes scale 2.
    """
    side = 8 * scale
    generator = torch.Generator().manual_seed(2)
    numbers = draw(0, range(count), (4, side, side))
    masks = torch.zeros(count, 2, side, side)
    masks[:, 0, 2 * scale : 6 * scale, scale : 4 * scale] = 1
    masks[1, 1, scale : 7 * scale, 5 * scale :] = 1
    tokens = torch.full((count, 2), -1)
    tokens[:, 0] = 5
    tokens[1, 1] = 9
    return Batch(
        latents=torch.randn(count, 4, side, side, generator=generator, dtype=dtype),
        text=torch.randn(count, TOKENS, TEXT_DIM, generator=generator, dtype=dtype),
        null_text=torch.randn(TOKENS, TEXT_DIM, generator=generator, dtype=dtype),
        image_embeds=torch.randn(count, 2, IMAGE_DIM, generator=generator, dtype=dtype),
        tokens=tokens,
        masks=masks.to(dtype),
        noise=numbers.noise.to(dtype),
        timesteps=torch.tensor([0, 800, *numbers.timesteps[2:].tolist()]),
        dropped=torch.arange(count) == 2,
    )


def sdxl_batch(batch: Batch) -> Batch:
    """The same samples for the tiny SDXL: states twice as wide, a pooled text, sizes and cuts of four photos."""
    generator = torch.Generator().manual_seed(4)
    return replace(
        batch,
        text=batch.text.repeat(1, 1, 2),
        null_text=torch.zeros_like(batch.null_text).repeat(1, 2),
        pooled=torch.randn(len(batch), TEXT_DIM, generator=generator).to(batch.text.dtype),
        null_pooled=torch.zeros(TEXT_DIM, dtype=batch.text.dtype),
        time_ids=torch.tensor([[32, 32, 0, 0, 32, 32], [64, 32, 10, 0, 32, 32], [40, 60, 0, 9, 32, 32]])[
            torch.arange(len(batch)) % 3
        ].float(),
    )
