"""Drawing with somebody's IP-Adapter (arXiv 2308.06721) as diffusers does, so that it can be judged beside MoA.

Safetensors only: the weights are read here and handed over, so that diffusers opens no pickle. Whoever is drawn is cut
out of their photo as for MoA; of two people both photos are shown, and nothing says whose is where.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import infra.torchvision_ops  # noqa: F401

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from evaluation.protocol import Drawing
from flows.painting import Painter
from infra.errors import UserError
from infra.settings import Settings

Weights = dict[str, dict[str, Tensor]]
"""An IP-Adapter as diffusers takes it: "image_proj" and "ip_adapter", each by the rest of a tensor's name."""

ENCODER = "image_encoder"  # the folder beside the weights, as IP-Adapter is published


def locate_ip_adapter(path: Path) -> tuple[Path, Path]:
    """The file of weights and the image encoder's folder beside it; `path`: that file, or the folder that holds both.

    Raises UserError where one of them is missing, where several could be meant, and for a pickle.
    """
    file = path = path.expanduser().absolute()
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            names = ", ".join(one.name for one in found)
            has = f"several IP-Adapters ({names}): name one" if found else "no .safetensors: name an IP-Adapter's file"
            raise UserError(f"The folder {path} holds {has}, as ip-adapter:FOLDER/FILE.safetensors.")
        file = found[0]
    if not file.is_file():
        raise UserError(f"There is no IP-Adapter at {file}: name its .safetensors file, or its folder.")
    if file.suffix != ".safetensors":
        raise UserError(f"{file} is not a .safetensors file, and pickles are never loaded: fetch that version of it.")
    encoder = file.parent / ENCODER
    if not ((encoder / "config.json").is_file() and (encoder / "model.safetensors").is_file()):
        raise UserError(
            f"The IP-Adapter's image encoder is not at {encoder}: put its config.json and model.safetensors there."
        )
    return file, encoder


def read_ip_adapter(file: Path) -> Weights:
    """The tensors of an IP-Adapter's file. UserError where it is none, or one of those that want a face's embedding."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}): copy it anew.") from error
    weights: Weights = {"image_proj": {}, "ip_adapter": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        if group in weights:
            weights[group][rest] = value
    if not all(weights.values()):
        raise UserError(f"{file} is no IP-Adapter: it lacks tensors called image_proj.… and ip_adapter.….")
    projection = weights["image_proj"]
    by_face = "perceiver_resampler.proj_in.weight" in projection or (
        "proj.0.weight" in projection and "proj.3.weight" not in projection
    )
    if by_face:
        raise UserError(f"{file} is an IP-Adapter FaceID, which sees no picture: name one with an image encoder.")
    return weights


class IPAdapterPainter:
    """A `Painter` without an adapter, whose pipeline has the IP-Adapter."""

    def __init__(self, painter: Painter, scale: float) -> None:
        """`scale`: how much the picture counts beside the text, 0 to 1."""
        self.painter, self.pipe, self.scale = painter, painter.pipe, scale

    @classmethod
    def open(cls, settings: Settings, file: Path, encoder: Path) -> Self:
        """Load everything. Raises UserError where the IP-Adapter is for another base or another image encoder."""
        painter = Painter.open(settings, None)
        pipe, weights = painter.pipe, read_ip_adapter(file)
        tower = CLIPVisionModelWithProjection.from_pretrained(encoder, use_safetensors=True, dtype=pipe.unet.dtype)
        _check_fits(weights, pipe.unet, tower.config, file, settings.models.base.location)
        side = tower.config.image_size
        pictures = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        pipe.register_modules(image_encoder=tower.eval().to(pipe.device), feature_extractor=pictures)
        try:
            pipe.load_ip_adapter(weights, subfolder="", weight_name="", low_cpu_mem_usage=False)
        except (KeyError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"diffusers cannot load the IP-Adapter {file} ({said}): name another.") from error
        return cls(painter, settings.evaluate.ip_adapter_scale)

    def crop(self, photo: Image.Image, name: str = "the photo") -> Image.Image:
        """As `Painter.crop`."""
        return self.painter.crop(photo, name)

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Any]], seeds: Sequence[int]
    ) -> list[Drawing]:
        """As `Painter.draw`, without router maps.

        Pictures with subjects are drawn one by one: diffusers has one set of photos for all prompts of a call.
        """
        if not any(subjects):
            return self._drawn(prompts, [], seeds)
        each = zip(prompts, subjects, seeds, strict=True)
        return [one for prompt, cast, seed in each for one in self._drawn([prompt], _photos(cast), [seed])]

    def _drawn(self, prompts: Sequence[str], photos: Sequence[Image.Image], seeds: Sequence[int]) -> list[Drawing]:
        """All prompts with the same photos; with none it is the prior that draws."""
        self.pipe.set_ip_adapter_scale(self.scale if photos else 0.0)
        side = self.pipe.image_encoder.config.image_size
        shown = list(photos) or [Image.new("RGB", (side, side))]
        call = self.painter.call_for(prompts, seeds)
        return [Drawing(image) for image in self.pipe(**call, ip_adapter_image=[shown]).images]


def _photos(cast: Mapping[str, Any]) -> list[Image.Image]:
    return [crop for bound in cast.values() for crop in (bound if isinstance(bound, list) else [bound])]


def _check_fits(weights: Weights, unet: Any, tower: Any, file: Path, base: str) -> None:
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    keys = [value for name, value in weights["ip_adapter"].items() if name.endswith("to_k_ip.weight")]
    wide = unet.config.cross_attention_dim
    if len(keys) != len(cross) or any(value.shape[-1] != wide for value in keys):
        wants = f"{len(keys)} layers of width {keys[0].shape[-1]}" if keys else "no layers"
        raise UserError(
            f"The IP-Adapter {file} has {wants}, and the base {base} {len(cross)} of width {wide}: name one for it."
        )
    projection = weights["image_proj"]
    for name, has in (
        ("proj.weight", tower.projection_dim),
        ("proj_in.weight", tower.hidden_size),
        ("proj.0.weight", tower.hidden_size),
    ):
        if name in projection and projection[name].shape[-1] != has:
            raise UserError(
                f"The IP-Adapter {file} wants image features of {projection[name].shape[-1]} numbers, and the encoder "
                f"in {ENCODER} gives {has}: put there the one that it was trained with."
            )
