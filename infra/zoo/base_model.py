"""Recipe for the demo's base: a Stable-Diffusion-shaped pipeline with SD 1.5's block layout (16 transformer blocks).

v-prediction on latents of the zoo's autoencoder; the text encoder starts as CLIP's text tower and learns along. A part
of the captions also says what the person looks like: a base learns faster from words that say more (arXiv 2310.00426),
and knows then, as Stable Diffusion does, what glasses and hats are. Two single-thread processes with one all-reduce a
step are faster on two cores than one process with two threads.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from infra.zoo.autoencoder import CHANNELS
from infra.zoo.pictures import LabelledPictures, to_tensor
from infra.zoo.schedule import Schedule, averaged

WIDTHS = (40, 80, 128, 128)
LATENT_SIDE = 16
PER_PROCESS = 24
DETAILED = 0.4  # of the pictures of one person are shown with the caption that tells their looks
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


def new_unet() -> UNet2DConditionModel:
    """The untrained network: SD 1.5's layout, narrower."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=2,
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=128,
        attention_head_dim=4,  # four heads, as diffusers reads this field for SD 1.x
        norm_num_groups=8,
    )


def encode_latents(vae: AutoencoderKL, pictures: LabelledPictures, batch: int = 64) -> Float[Tensor, "n 2*c h w"]:
    """Moments (mean and log-variance) of all pictures in half precision, unscaled."""
    with torch.inference_mode():
        parts = [
            vae.encode(to_tensor(pictures.pixels[i : i + batch])).latent_dist.parameters.half()
            for i in range(0, len(pictures), batch)
        ]
    return torch.cat(parts)


def encode_captions(
    pipe: StableDiffusionPipeline, captions: Sequence[str]
) -> tuple[Float[Tensor, "texts t d"], Int64[Tensor, " n"]]:
    """The text states of the distinct captions, those of the empty prompt first, and where each caption's are."""
    texts = ["", *sorted(set(captions))]
    with torch.no_grad():
        states = torch.cat([pipe.encode_prompt(text, "cpu", 1, False)[0] for text in texts])
    return states, torch.tensor([texts.index(caption) for caption in captions])


def draw_timesteps(count: int, random: torch.Generator) -> Int64[Tensor, " n"]:
    """Timesteps in [0, 1000): 30 % uniform, the rest logit-normal around 430 (arXiv 2403.03206, section 3.1).

    On 16 x 16 latents SD's schedule leaves next to no signal above 700: a third of the compute would go to noise.
    """
    uniform = torch.rand(count, generator=random)
    middle = torch.sigmoid(torch.randn(count, generator=random) - 0.3)
    return (1000 * torch.where(torch.rand(count, generator=random) < 0.3, uniform, middle)).long().clamp(max=999)


def detailed_captions(pictures: LabelledPictures, tokenizer: CLIPTokenizer) -> list[str]:
    """Captions that tell the looks of a person who is alone: "a photo of a man with tan skin … on the beach".

    The plain caption stays where there are two people, and where the words would not fit the text encoder.
    """

    def detailed(caption: str, looks: list[str]) -> str:
        if len(looks) != 1:
            return caption
        person = " ".join(looks[0].split()[:2])  # "a man with tan skin, …" begins with the caption's own words
        text = caption.replace(person, looks[0].replace(",", ""), 1)
        fits = len(tokenizer.tokenize(text)) + 2 <= tokenizer.model_max_length  # with the two marks of start and end
        return text if fits else caption

    return [detailed(*both) for both in zip(pictures.captions, pictures.looks, strict=True)]


def mean_over_ranks(parameters: list[torch.nn.Parameter], numbers: Float[Tensor, " k"]) -> list[float]:
    """Replace every gradient by its mean over the ranks, in one all-reduce; `numbers` travel along, their means return.

    The means are copied into the gradients that are there and keep their memory format: PyTorch's fused AdamW reads a
    gradient in the order of its memory, and would mix up one that is laid out otherwise than its parameter.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), numbers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *means, extra = flat.split([*(gradient.numel() for gradient in gradients), len(numbers)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view(gradient.shape))
    return extra.tolist()


def _worker(
    rank: int,
    processes: int,
    pictures: Path,
    moments: Path,
    vae: Path,
    clip: Path,
    out: Path,
    minutes: float,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=processes)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    unet = new_unet().to(memory_format=torch.channels_last)
    text = CLIPTextModel.from_pretrained(clip)
    both = torch.nn.ModuleDict({"unet": unet, "text": text})
    average = averaged(both, 0.998)
    groups = [{"params": list(unet.parameters())}, {"params": list(text.parameters()), "rate_factor": 0.3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, fused=True)
    noise = DDPMScheduler(**SCHEDULE)
    labelled = LabelledPictures.load(pictures)
    parameters = torch.from_numpy(np.load(moments, mmap_mode="c", allow_pickle=False))
    scale = AutoencoderKL.load_config(vae)["scaling_factor"]
    plain, detailed = (
        tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        for texts in (labelled.captions, detailed_captions(labelled, tokenizer))
    )
    null = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    random = torch.Generator().manual_seed(1000 + rank)
    schedule = Schedule(minutes, peak=1e-3, warmup=0.02)
    schedule.apply(optimizer, 0.0)
    started, step, spent = time.monotonic(), 0, 0.0
    saved = 0.0
    weights = list(both.parameters())
    while spent < 60 * minutes:
        index = torch.randint(len(plain), (PER_PROCESS,), generator=random)
        mean, log_variance = parameters[index].float().chunk(2, 1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30, 20))
        latents = scale * (mean + deviation * torch.randn(mean.shape, generator=random))
        tokens = torch.where(torch.rand(PER_PROCESS, 1, generator=random) < DETAILED, detailed[index], plain[index])
        tokens = torch.where(torch.rand(PER_PROCESS, 1, generator=random) < 0.1, null, tokens)
        t = draw_timesteps(PER_PROCESS, random)
        eps = torch.randn(latents.shape, generator=random)
        noisy = noise.add_noise(latents, eps, t).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, t, text(tokens).last_hidden_state).sample
        loss = F.mse_loss(predicted, noise.get_velocity(latents, eps, t))
        loss.backward()
        # Rank 0's clock goes with the gradients: all ranks take the same rate and stop at the same step.
        clock = time.monotonic() - started if rank == 0 else 0.0
        clock_mean, loss_mean = mean_over_ranks(weights, torch.stack([torch.tensor(clock), loss.detach()]))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(both)
        step, spent = step + 1, processes * clock_mean
        schedule.apply(optimizer, spent)
        if rank == 0 and step % 50 == 0:
            print(f"base step {step} loss {loss_mean:.4f} {spent / 60:.1f} min", flush=True)
        if rank == 0 and spent - saved > 240:
            saved = spent
            save_base(average.module["unet"], average.module["text"], vae, tokenizer, out / "so-far")
    if rank == 0:
        save_base(average.module["unet"], average.module["text"], vae, tokenizer, out / "base")
    dist.destroy_process_group()


def save_base(unet: UNet2DConditionModel, text: CLIPTextModel, vae: Path, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write a stock `StableDiffusionPipeline` folder."""
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=UniPCMultistepScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out, safe_serialization=True)


def train_base(
    pictures: Path,
    vae: Path,
    clip: Path,
    out: Path,
    minutes: float,
    processes: int = 2,
    log: Callable[[str], None] = print,
) -> Path:
    """Train for `minutes` on `processes` cores and save the pipeline to `out`/base (and to `out`/so-far on the way)."""
    out.mkdir(parents=True, exist_ok=True)
    moments = out / "moments.npy"
    if not moments.exists():
        log("encoding the pictures")
        encoder = AutoencoderKL.from_pretrained(vae).eval()
        part = out / "moments.part.npy"  # whole or not at all: a killed run must not leave half of it
        np.save(part, encode_latents(encoder, LabelledPictures.load(pictures)).numpy())
        os.replace(part, moments)
    (out / "rendezvous").unlink(missing_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    job = (processes, pictures, moments, vae, clip, out, minutes)
    multiprocessing.start_processes(_worker, args=job, nprocs=processes, start_method="spawn")
    return out / "base"
