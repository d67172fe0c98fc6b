"""The IP-Adapter arm: diffusers' own processors and projection, trained as its authors train them.

Axes: B batch, S subjects, F image feature, H W latent pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evaluation.protocol import Drawing
from flows.painting import open_image_encoder, open_pipeline
from infra.settings import Settings
from moa_model import Batch, ImageEncoder, Losses
from moa_model.losses import masked_loss
from moa_model.training import denoising_target

_TOKENS = 4  # image tokens per picture, as in ip-adapter_sd15
FILE = "ip_adapter.safetensors"


def fresh_weights(unet: Any, image_dim: int) -> dict[str, dict[str, Tensor]]:
    """An untrained IP-Adapter in its published layout: the image's K and V start as the text's."""
    projection = ImageProjection(image_dim, unet.config.cross_attention_dim, _TOKENS)
    image = {name.replace("image_embeds", "proj"): value for name, value in projection.state_dict().items()}
    attention: dict[str, Tensor] = {}
    layers = dict(unet.named_modules())
    for number, name in enumerate(unet.attn_processors):  # diffusers counts all layers, self-attention included
        host = layers[name.removesuffix(".processor")]
        if name.endswith("attn2.processor"):
            attention[f"{number}.to_k_ip.weight"] = host.to_k.weight.detach().clone()
            attention[f"{number}.to_v_ip.weight"] = host.to_v.weight.detach().clone()
    return {"image_proj": image, "ip_adapter": attention}


class IPAdapterArm(nn.Module):
    """A training of IP-Adapter: the plain denoising loss, all pixels, on one picture a sample."""

    def __init__(self, unet: Any, scheduler: Any, image_dim: int) -> None:
        super().__init__()
        self.scheduler = DDPMScheduler.from_config(scheduler)
        unet._load_ip_adapter_weights([fresh_weights(unet, image_dim)], low_cpu_mem_usage=False)
        self.unet = unet.eval().requires_grad_(False)
        self.trained = nn.ModuleDict({"projection": unet.encoder_hid_proj})
        for number, (name, processor) in enumerate(unet.attn_processors.items()):
            if isinstance(processor, IPAdapterAttnProcessor2_0):
                assert name.endswith("attn2.processor")
                self.trained[str(number)] = processor
        self.trained.requires_grad_(True)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        return [{"params": list(self.trained.parameters()), "lr": learning_rate}]

    def forward(self, batch: Batch, coin_B: Float[Tensor, " B"], prior_BCHW: Tensor | None) -> Losses:
        """Of two people the first one's picture is shown: its authors train with one picture a sample, too."""
        text_BTD = torch.where(batch.dropped[:, None, None], batch.null_text, batch.text)
        image_B1F = torch.where(batch.dropped[:, None, None], 0.0, batch.image_embeds[:, :1])
        noisy_BCHW = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction_BCHW = self.unet(
            noisy_BCHW,
            batch.timesteps,
            text_BTD,
            added_cond_kwargs={"image_embeds": [image_B1F]},
            return_dict=False,
        )[0]
        everywhere_BHW = torch.ones_like(batch.latents[:, 0])
        loss = masked_loss(prediction_BCHW, denoising_target(self.scheduler, batch), everywhere_BHW)
        zero = loss.new_zeros(())
        return Losses(loss, loss, zero, zero, zero)

    def keep(self, folder: Path) -> None:
        """Write the weights in IP-Adapter's published layout, so that any diffusers pipeline loads them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, value in self.trained.state_dict().items():
            group, _, rest = name.partition(".")
            if group == "projection":
                rest = rest.removeprefix("image_projection_layers.0.").replace("image_embeds", "proj")
                tensors[f"image_proj.{rest}"] = value
            else:
                tensors[f"ip_adapter.{group}.{rest.replace('_ip.0.', '_ip.')}"] = value
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / FILE)


def read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter's file as `load_ip_adapter` takes it."""
    groups: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in load_file(folder / FILE).items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value
    return groups


class IPAdapterPainter:
    """Draws as diffusers draws with IP-Adapter: the stock pipeline, `load_ip_adapter`, the crops' embeddings."""

    def __init__(self, settings: Settings, folder: Path, scale: float) -> None:
        self.settings = settings
        self.pipe = open_pipeline(settings.models)
        self.pipe.load_ip_adapter(
            read_weights(folder), subfolder=None, weight_name=None, image_encoder_folder=None, low_cpu_mem_usage=False
        )
        self.pipe.set_ip_adapter_scale(scale)
        self.encoder: ImageEncoder = open_image_encoder(settings.models)

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Image.Image]], seeds: Sequence[int], **more: Any
    ) -> list[Drawing]:
        """One picture a call: the pipeline takes one set of image embeddings for all the prompts of a call.

        Of several subjects all pictures are shown; no masks say whose is where.
        """
        return [self._one(*each, **more) for each in zip(prompts, subjects, seeds, strict=True)]

    def _one(self, prompt: str, subjects: Mapping[str, Image.Image], seed: int, **more: Any) -> Drawing:
        image_1SF = self.encoder.encode(list(subjects.values()))[None]
        options, side = self.settings.evaluate, self.settings.ingest.pixels
        images = self.pipe(
            prompt=prompt,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(image_1SF), image_1SF])],
            num_inference_steps=options.inference_steps,
            guidance_scale=options.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            height=side,
            width=side,
            **more,
        ).images
        return Drawing(images[0])
