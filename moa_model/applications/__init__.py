"""What a trained MoA is for: the paper's applications, each a few lines over a stock pipeline with an adapter on it.

``pipe`` is a stock Stable Diffusion pipeline, ``adapter`` a ``MoAAdapter`` attached to it; ``**call`` goes on to the
pipeline as it is (``num_inference_steps``, ``guidance_scale``, ``height``, …).
"""

from moa_model.applications.browsing import browse
from moa_model.applications.control import with_control
from moa_model.applications.inversion import Inverted, invert, regenerate, renoised
from moa_model.applications.morph import morph
from moa_model.applications.router_maps import heat, router_maps
from moa_model.applications.story import Character, story, told
from moa_model.applications.style import styled
from moa_model.applications.swap import draw, scene_of, swap
from moa_model.applications.time_lapse import time_lapse

__all__ = [
    "Character",
    "Inverted",
    "browse",
    "draw",
    "heat",
    "invert",
    "morph",
    "regenerate",
    "renoised",
    "router_maps",
    "scene_of",
    "story",
    "styled",
    "swap",
    "time_lapse",
    "told",
    "with_control",
]
