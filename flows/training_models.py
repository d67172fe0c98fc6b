"""What a training's worker begins with: the base's frozen U-Net and its schedule, and the adapter."""

import tempfile
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from torch import nn

from flows.training_job import TrainingJob
from infra.model_files import resolve
from infra.settings import Settings
from moa_model import MoAAdapter


def base_of(settings: Settings) -> tuple[nn.Module, Any, float, float]:
    """The base's U-Net, scheduler configuration, latent scale and shift."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    where, options = resolve(settings.models.base, "base")
    safe: dict[str, Any] = {**options, "use_safetensors": True}
    unet = UNet2DConditionModel.from_pretrained(where, subfolder="unet", **safe)
    scheduler = DDPMScheduler.load_config(where, subfolder="scheduler", **options)
    vae = AutoencoderKL.load_config(where, subfolder="vae", **options)
    return unet, scheduler, float(vae.get("scaling_factor", 0.18215)), float(vae.get("shift_factor") or 0.0)


def new_adapter(job: TrainingJob, unet: nn.Module, image_dim: int) -> MoAAdapter:
    """Fresh from the training's seed, or with the weights from which it starts."""
    own = {
        "prior_only_above": job.settings.evaluate.prior_only_above,
        "image_encoder": job.settings.models.clip.location,
    }
    if job.start is None:
        torch.manual_seed(job.settings.train.seed)
        return MoAAdapter.for_unet(unet, image_dim, **own)
    with tempfile.TemporaryDirectory(prefix="moa-start-") as folder:
        for name, data in job.start.items():
            Path(folder, name).write_bytes(data)
        adapter = MoAAdapter.from_pretrained(folder)
    # What is no weight is this run's, not that of the release it starts from.
    adapter.config = adapter.config.model_copy(update=own)
    return adapter
