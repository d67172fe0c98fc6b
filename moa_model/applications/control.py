"""ControlNet (§5.1): a stock one, on the stock pipeline, with the adapter where it was. It sees plain text."""

from typing import Any

import infra.torchvision_ops  # noqa: F401

from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline

from infra.errors import UserError
from moa_model.stock_pipelines import is_sdxl, rebuilt


def with_control(
    pipe: Any, location: str, **options: Any
) -> StableDiffusionControlNetPipeline | StableDiffusionXLControlNetPipeline:
    """The same models with a ControlNet (a folder or a hub id) beside them: call it with ``image=`` a pose.

    An adapter that is attached to `pipe` is attached to the new pipeline too. Raises UserError if it cannot be read.
    """
    try:
        controlnet = ControlNetModel.from_pretrained(location, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(f'No ControlNet at "{location}": {str(error).splitlines()[0]}') from error
    kind = StableDiffusionXLControlNetPipeline if is_sdxl(pipe) else StableDiffusionControlNetPipeline
    return rebuilt(pipe, kind, controlnet=controlnet.to(pipe.device, pipe.unet.dtype))
