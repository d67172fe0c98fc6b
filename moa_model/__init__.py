"""Mixture-of-Attention (arXiv 2404.11565) for stock diffusers pipelines: see README.md for the map."""

import infra.torchvision_ops  # noqa: F401

from moa_model.adapter import MoAAdapter
from moa_model.binding import Binding, Subject, Subjects
from moa_model.checkpoint import Snapshot, load_checkpoint
from moa_model.config import MoAConfig
from moa_model.ema import EMA
from moa_model.image_encoder import ImageEncoder
from moa_model.losses import Losses
from moa_model.recording import RecordedStep
from moa_model.sampling import Draw, SampleOrder, draw, latents_from_moments, share
from moa_model.scene import Scene
from moa_model.training import Batch, MoATrainingModule, rate_scale

__all__ = [
    "EMA",
    "Batch",
    "Binding",
    "Draw",
    "ImageEncoder",
    "Losses",
    "MoAAdapter",
    "MoAConfig",
    "MoATrainingModule",
    "RecordedStep",
    "SampleOrder",
    "Scene",
    "Snapshot",
    "Subject",
    "Subjects",
    "draw",
    "latents_from_moments",
    "load_checkpoint",
    "rate_scale",
    "share",
]
