"""What differs between the stock pipelines of Stable Diffusion 1 and 2 and those of XL, for who takes them apart."""

from typing import Any

import torch

Call = dict[str, Any]
"""Arguments of a pipeline call."""


def is_sdxl(pipe: Any) -> bool:
    """Whether the pipeline has SDXL's second text encoder."""
    return getattr(pipe, "text_encoder_2", None) is not None


def rebuilt(pipe: Any, pipeline_class: type, **parts: Any) -> Any:
    """The same models, with `parts` beside them or in their place, in another stock pipeline of the same family.

    An adapter that is attached to `pipe` is attached to the new one too: the U-Net is the same.
    """
    options: Call = {"requires_safety_checker": False}
    if is_sdxl(pipe):
        zeros = pipe.config.force_zeros_for_empty_prompt
        options = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": pipe.watermark is not None}
    made = pipeline_class(**{**pipe.components, **parts}, **options)
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made


@torch.no_grad()
def encoded(pipe: Any, prompt: str, guided: bool = True) -> Call:
    """A prompt as a call's arguments for one that is encoded already; `guided`: the unconditional half too."""
    names = ["prompt_embeds", "negative_prompt_embeds"]
    if is_sdxl(pipe):
        names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    made = pipe.encode_prompt(prompt, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=guided)
    found = dict(zip(names, made, strict=True))
    return found if guided else {name: each for name, each in found.items() if "negative" not in name}


def added_conditions(pipe: Any, prompt: Call, size: tuple[int, int]) -> dict[str, torch.Tensor] | None:
    """What SDXL's U-Net takes beside the text of an `encoded` prompt, for a whole picture of this height and width.

    None for a U-Net that takes a text alone. The values are those of a call with the same `height` and `width`.
    """
    if not is_sdxl(pipe):
        return None
    pooled = prompt["pooled_prompt_embeds"]
    sizes = torch.tensor([[*size, 0, 0, *size]], dtype=pooled.dtype, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": sizes}
