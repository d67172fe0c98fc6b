"""The steps that `make bench-training` measures on a GPU: MoA's, and full fine-tuning as diffusers' recipe has it.

Both draw their noise on the device from the same synthetic samples (VAE moments, text states, image features), made
once: what a loader costs is measured elsewhere.
Axes: B batch, S subjects, C channels, H W latent pixels, T text tokens, D text width, F image feature.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moa_model import EMA, Batch, MoAAdapter, MoATrainingModule, latents_from_moments
from moa_model.flops import unet_macs
from moa_model.speed import Compile, make_optimizer, prepare

SCALING = 0.18215  # of Stable Diffusion 1.5's latents
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEARNING_RATE = 1e-5
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """A base and what it is fed with."""

    title: str
    unet: dict[str, Any]
    latent: int
    text: int
    tokens: int
    image: int
    blocks: Literal["middle", "all"] = "middle"
    backend: str = "inductor"


FULL = Sizes("Stable Diffusion 1.5", {"cross_attention_dim": 768, "sample_size": 64}, 64, 768, 77, 768)
# One transformer block: all that is done at full size is done in a minute of a CPU. No code is generated for it.
TINY = Sizes(
    "a tiny U-Net",
    {
        "sample_size": 8,
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
    },
    8, 16, 12, 12, "all", "eager",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One way to train, a row of the table."""

    key: str
    title: str
    kind: Literal["moa", "full"] = "moa"
    channels_last: bool = True
    compile: Compile = "off"
    fused: bool = True
    activation_checkpointing: bool = False
    frozen_half: bool = False


RECIPE = Setting("recipe", "diffusers' recipe", "full", channels_last=False)
_HALF = ", frozen prior in bf16"
SETTINGS = (
    Setting("recipe-compiled", "diffusers' recipe, channels_last, compiled", "full", compile="default"),
    Setting("eager", "eager", channels_last=False, fused=False),
    Setting("fused", "eager, fused AdamW", channels_last=False),
    Setting("channels-last", "eager, fused AdamW, channels_last"),
    Setting("checkpointed", "eager, fused, channels_last, checkpointing", activation_checkpointing=True),
    Setting("compiled", "compiled, fused AdamW, channels_last", compile="default"),
    Setting("compiled-checkpointed", "compiled, checkpointing", compile="default", activation_checkpointing=True),
    Setting("frozen-half", f"compiled{_HALF}", compile="default", frozen_half=True),
    Setting("graphs", f"CUDA graphs{_HALF}", compile="reduce-overhead", frozen_half=True),
    Setting("autotuned", f"autotuned{_HALF}", compile="max-autotune-no-cudagraphs", frozen_half=True),
)


@dataclass(frozen=True)
class Samples:
    """A batch as a loader would give it, on the device."""

    moments: Tensor
    text: Tensor
    null_text: Tensor
    image_embeds: Tensor
    tokens: Tensor
    masks: Tensor


def synthetic(sizes: Sizes, batch: int, device: torch.device | str) -> Samples:
    """``batch`` samples, every other one with a second subject."""
    side = sizes.latent
    masks = torch.zeros(batch, 2, side, side, device=device)
    masks[:, 0, side // 4 :, : side // 2] = 1
    masks[1::2, 1, side // 4 :, side // 2 :] = 1
    tokens = torch.full((batch, 2), -1, device=device)
    tokens[:, 0] = 5
    tokens[1::2, 1] = 9
    moments = torch.randn(batch, 8, side, side, device=device)
    moments[:, 4:] -= 8.0  # log variances: a trained VAE is nearly sure
    return Samples(
        moments=moments,
        text=torch.randn(batch, sizes.tokens, sizes.text, device=device),
        null_text=torch.randn(sizes.tokens, sizes.text, device=device),
        image_embeds=torch.randn(batch, 2, sizes.image, device=device),
        tokens=tokens,
        masks=masks,
    )


def make_unet(sizes: Sizes, device: torch.device | str) -> UNet2DConditionModel:
    """Random weights: speed does not depend on them. diffusers' defaults are Stable Diffusion 1.5's."""
    with torch.device(device):
        return UNet2DConditionModel(**sizes.unet)


class MoACase:
    """MoA's step, as `flows.training_loop` takes it: clipped gradients, AdamW, averaged weights."""

    def __init__(self, setting: Setting, sizes: Sizes, samples: Samples, device: torch.device) -> None:
        unet = make_unet(sizes, device)
        with torch.device(device):
            adapter = MoAAdapter.for_unet(unet, sizes.image)
        scheduler = DDPMScheduler(**SCHEDULE)
        module = MoATrainingModule(unet, adapter, scheduler.config, blocks=sizes.blocks).to(device)
        self.module = prepare(
            module,
            channels_last=setting.channels_last,
            compile=setting.compile,
            activation_checkpointing=setting.activation_checkpointing,
            frozen_dtype=torch.bfloat16 if setting.frozen_half else None,
            backend=sizes.backend,
        )
        self.samples, self.device = samples, device
        if device.type != "meta":
            self.optimizer = make_optimizer(module.optimizer_groups(LEARNING_RATE), fused=setting.fused)
            self.ema = EMA(adapter, 0.9999)

    def gradients(self, half: bool = True) -> Tensor:
        """Forward and backward of fresh noise; the loss."""
        known = self.samples
        count = len(known.moments)
        noise = torch.randn_like(known.moments[:, :4])
        batch = Batch(
            latents=latents_from_moments(known.moments, torch.randn_like(noise), SCALING),
            text=known.text,
            null_text=known.null_text,
            image_embeds=known.image_embeds,
            tokens=known.tokens,
            masks=known.masks,
            noise=noise,
            timesteps=torch.randint(0, 801, (count,), device=self.device),
            dropped=torch.rand(count, device=self.device) < 0.1,
        )
        with _autocast(self.device, half):
            loss = self.module(batch).total
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        """A whole optimisation step; the loss, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients()
        norm = nn.utils.clip_grad_norm_(self.module.adapter.parameters(), 1.0)
        torch.stack(
            [loss, norm.to(loss)]
        ).tolist()  # the loop looks for bad ones before it steps: it waits for the device
        self.optimizer.step()
        self.ema.update()
        return loss


class FullCase:
    """Full fine-tuning of the U-Net as diffusers documents it for text to image: bf16 mixed precision, AdamW, no EMA.

    Written from the recipe's description: weights in single precision under autocast, uniform timesteps, mean squared
    error of the noise, gradients clipped at 1. Its AdamW is fused here, and the conditions are known, as in MoA's step.
    """

    def __init__(self, setting: Setting, sizes: Sizes, samples: Samples, device: torch.device) -> None:
        self.unet = make_unet(sizes, device).train()
        self.scheduler = DDPMScheduler(**SCHEDULE)
        self.samples, self.device = samples, device
        if setting.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if setting.compile != "off":
            mode = None if sizes.backend != "inductor" or setting.compile == "default" else setting.compile
            self.unet.forward = torch.compile(
                self.unet.forward, fullgraph=True, dynamic=False, backend=sizes.backend, mode=mode
            )
        if device.type != "meta":
            self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=LEARNING_RATE, fused=setting.fused)

    def gradients(self, half: bool = True) -> Tensor:
        """Forward and backward of fresh noise; the loss."""
        moments = self.samples.moments
        noise = torch.randn_like(moments[:, :4])
        latents = latents_from_moments(moments, torch.randn_like(noise), SCALING)
        timesteps = torch.randint(0, 1000, (len(moments),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        with _autocast(self.device, half):
            prediction = self.unet(noisy, timesteps, self.samples.text, return_dict=False)[0]
        loss = functional.mse_loss(prediction.float(), noise)
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        """A whole optimisation step; the loss, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        return loss


def make_case(setting: Setting, sizes: Sizes, samples: Samples, device: torch.device) -> MoACase | FullCase:
    """The case of a setting, its weights always the same."""
    torch.manual_seed(0)
    return (MoACase if setting.kind == "moa" else FullCase)(setting, sizes, samples, device)


def _autocast(device: torch.device, half: bool) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()


def flops_by_part(counter: FlopCounterMode) -> dict[str, float]:
    """FLOPs by what does them: "convolution", "attention" (products of queries, keys and values), "matmul"."""
    parts = {"convolution": 0.0, "attention": 0.0, "matmul": 0.0}
    for operator, flops in counter.get_flop_counts()["Global"].items():
        name = str(operator)
        batched = "bmm" in name or "scaled_dot_product" in name
        parts["convolution" if "convolution" in name else "attention" if batched else "matmul"] += flops
    return parts


def counted(sizes: Sizes) -> dict[str, Any]:
    """FLOPs of one picture: of the plain forward pass, and by part of both kinds' forward and backward; on "meta"."""
    device = torch.device("meta")
    samples = synthetic(sizes, 2, device)
    found: dict[str, Any] = {
        "forward": 2 * unet_macs(make_unet(sizes, device), (sizes.latent, sizes.latent), sizes.text, sizes.tokens)[0]
    }
    for kind, setting in (("moa", Setting("", "", channels_last=False)), ("full", RECIPE)):
        case = make_case(setting, sizes, samples, device)
        # Products as such, so that both directions of attention are counted without what a kernel computes again.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            case.gradients(half=False)
        found[kind] = {part: flops / 2 for part, flops in flops_by_part(counter).items()}
    return found
