"""How fast MoA is beside the stock pipeline and beside full fine-tuning: `make bench-model`.

Everything at Stable Diffusion 1.5's full size (random weights: speed does not depend on them), in one run, stock and
MoA turn and turn about, so that a busy machine disturbs both alike. What the routers ask for at full size is taken from
the trained demo release, layer by layer: both bases have the same 32 attention layers.
"""

import argparse
import gc
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from moa_model import Batch, MoAAdapter, MoATrainingModule, Subjects
from moa_model.flops import moa_macs, unet_macs
from moa_model.layers import layer_shapes
from tests.benchmarks.machine import machine

LATENT, TEXT, TOKENS, IMAGE, WORD = 64, 768, 77, 768, 5
SKIP_BELOW = 0.2  # the sparse mode's threshold
PEOPLE = 12  # of the demo's world, for PSNR and the routers' shares; two prompts each
TRAIN_ROWS = 1  # full fine-tuning in fp32 of more does not fit 24 GiB
console = Console()


# ---- the trained demo release: what the routers ask for, and what leaving out the rest costs in quality


def demo_routers() -> dict[str, Any]:
    """`asked`: share of pixels per layer and half whose expert runs; `psnr`: of every picture, sparse against exact."""
    from flows.evaluation_people import read_people
    from flows.painting import Painter
    from flows.run import Run
    from flows.world import prepare_world
    from infra.model_files import ZOO
    from infra.settings import load_settings

    with tempfile.TemporaryDirectory(prefix="moa-bench-") as folder:
        # Drawn freely: where a scene is kept, both pictures are the prior's and there is nothing to compare.
        free = {"paperfolk.photos": "20", "evaluate.subjects": str(PEOPLE), "evaluate.keep_scene": "false"}
        settings = load_settings("demo", Path(folder), free)
        prepare_world(settings)
        people = read_people(Run(settings))
        painter = Painter.open(settings, ZOO / "release-1")
        photos = [Image.open(io.BytesIO(person["photos"][0])) for person in people]
        crops = [painter.crop(photo) for photo in photos]
        templates = [prompt.template for prompt in settings.evaluate.prompts[:4:3]]
    assert painter.adapter is not None

    def draw() -> np.ndarray:
        pictures = []
        for number, template in enumerate(templates):
            words = [person["word"] for person in people]
            drawn = painter.draw(
                [template.format(word=word) for word in words],
                [{word: crop} for word, crop in zip(words, crops, strict=True)],
                [100 * number + turn for turn in range(len(people))],
            )
            pictures += [np.asarray(drawing.picture, np.float64) for drawing in drawn]
        return np.stack(pictures)

    exact = draw()
    painter.adapter.skip_below = SKIP_BELOW
    with painter.adapter.recording() as steps:
        sparse = draw()
    errors = np.square(exact - sparse).reshape(len(exact), -1).mean(1)
    asked = {}
    for layer in range(len(painter.adapter.layers)):
        maps = [step.maps.router[layer] < 1 for step in steps]
        asked[layer] = [float(np.mean([half.float().mean().item() for half in halves])) for halves in _halves(maps)]
    return {"asked": asked, "psnr": (10 * np.log10(255**2 / np.maximum(errors, 1e-9))).tolist()}


def _halves(maps: list[Tensor]) -> list[list[Tensor]]:
    return [[one.chunk(2)[half] for one in maps] for half in (0, 1)]


# ---- a denoising step


class Spotlight(nn.Linear):
    """A router that does its own work, and then lights a disc in the middle: so much of each half as is asked."""

    def __init__(self, width: int, pixels: int, asked: list[float]) -> None:
        super().__init__(width, 2)
        side = int(pixels**0.5)
        place = torch.arange(side) + 0.5 - side / 2
        order = (place[:, None] ** 2 + place[None, :] ** 2).flatten().argsort()
        light = torch.full((2, pixels, 2), 0.0)
        light[..., 0] = 6.0  # R_1 = 0.002
        for half, share in enumerate(asked):
            light[half, order[: round(share * pixels)]] = torch.tensor([0.0, 6.0])
        self.register_buffer("light", light)

    def forward(self, hidden_BNC: Tensor) -> Tensor:
        """The own logits, which are small, and the light."""
        return super().forward(hidden_BNC) * 1e-3 + self.light.to(hidden_BNC.dtype)


def denoising_step(device: torch.device, dtype: torch.dtype, rounds: int, asked: dict[int, list[float]]) -> dict:
    """Seconds of a guided step: stock, exact, sparse; each round measures all three."""
    unet, pixels = _unet().to(device, dtype), _pixels()
    adapter = MoAAdapter.for_unet(unet, IMAGE).attach(unet).eval()
    _spotlights(adapter, pixels, asked)
    adapter.to(device, dtype)
    latents = torch.randn(2, 4, LATENT, LATENT, device=device, dtype=dtype)
    text = torch.randn(2, TOKENS, TEXT, device=device, dtype=dtype)
    subjects = Subjects(
        torch.randn(2, 1, IMAGE), torch.tensor([[-1], [WORD]]), share_B=torch.ones(2), scale_BS=torch.ones(2, 1)
    )

    def step(timestep: int, moa: bool, skip_below: float = 0.0) -> float:
        adapter.skip_below = skip_below
        kwargs = {"cross_attention_kwargs": {"moa": subjects}} if moa else {}
        started = _now(device)
        with torch.no_grad():
            plain, bound = unet(latents, timestep, encoder_hidden_states=text, **kwargs).sample.chunk(2)
            torch.lerp(plain, bound, 5.0)
        return _now(device) - started

    times: dict[str, list[float]] = {"stock": [], "exact": [], "sparse": []}
    step(700, False), step(700, True), step(699, True, SKIP_BELOW)  # warm up; the text is known from here on
    for turn in range(rounds):
        timestep = 690 - 10 * turn
        times["stock"].append(step(timestep, False))
        times["exact"].append(step(timestep, True))
        times["sparse"].append(step(timestep - 1, True, SKIP_BELOW))
        console.print("  ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in times.items()))
    return times


def compiled_step(device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, list[float]]:
    """Seconds of a guided step through torch.compile, fullgraph: stock and exact."""
    times: dict[str, list[float]] = {}
    for name in ("stock", "exact"):
        torch._dynamo.reset()
        unet = _unet().to(device, dtype).to(memory_format=torch.channels_last)
        kwargs: dict[str, Any] = {}
        if name == "exact":
            adapter = MoAAdapter.for_unet(unet, IMAGE).attach(unet).eval()
            subjects = Subjects(torch.randn(2, 1, IMAGE), torch.tensor([[-1], [WORD]]))
            kwargs = {"cross_attention_kwargs": {"moa": subjects}}
            adapter.to(device, dtype)
        unet.forward = torch.compile(unet.forward, fullgraph=True)
        latents = torch.randn(2, 4, LATENT, LATENT, device=device, dtype=dtype)
        text = torch.randn(2, TOKENS, TEXT, device=device, dtype=dtype)
        times[name] = []
        for turn in range(rounds + 2):
            started = _now(device)
            with torch.no_grad():
                unet(latents, torch.tensor(700 - turn, device=device), encoder_hidden_states=text, **kwargs)
            if turn >= 2:
                times[name].append(_now(device) - started)
        del unet, kwargs
        gc.collect()
        console.print(f"compiled {name} {statistics.median(times[name]):.2f} s")
    return times


def _spotlights(adapter: MoAAdapter, pixels: list[int], asked: dict[int, list[float]]) -> None:
    for index, layer in enumerate(adapter.layers):
        layer.router = Spotlight(layer.shape.hidden_dim, pixels[index], asked[index])


# ---- a training step, each kind in a process of its own: the peak of its memory is its own


def training_step(kind: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds and peak bytes of forward, losses, backward and AdamW: "moa", or "full" as diffusers fine-tunes."""
    unet = _unet().to(device)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(TRAIN_ROWS, 4, LATENT, LATENT, generator=generator).to(device)
    text = torch.randn(TRAIN_ROWS, TOKENS, TEXT, generator=generator).to(device)
    timesteps = torch.full((TRAIN_ROWS,), 500, device=device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    loss: Callable[[], Tensor]
    if kind == "moa":
        module = MoATrainingModule(unet, MoAAdapter.for_unet(unet, IMAGE), scheduler.config).to(device)
        masks = torch.zeros(TRAIN_ROWS, 1, LATENT, LATENT, device=device)
        masks[..., 16:60, 12:52] = 1
        batch = Batch(
            latents=latents,
            text=text,
            null_text=text[0],
            image_embeds=torch.randn(TRAIN_ROWS, 1, IMAGE, device=device),
            tokens=torch.full((TRAIN_ROWS, 1), WORD, device=device),
            masks=masks,
            noise=noise,
            timesteps=timesteps,
            dropped=torch.zeros(TRAIN_ROWS, dtype=torch.bool, device=device),
        )
        optimizer = torch.optim.AdamW(module.optimizer_groups(1e-5), fused=True)
        loss = lambda: module(batch).total  # noqa: E731
    else:
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, fused=True)

        def loss() -> Tensor:
            noisy = scheduler.add_noise(latents, noise, timesteps)
            return functional.mse_loss(unet(noisy, timesteps, encoder_hidden_states=text).sample, noise)

    seconds = []
    for turn in range(rounds + 1):
        started = _now(device)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        if turn:  # the first one also makes the optimiser's state
            seconds.append(_now(device) - started)
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {"seconds": seconds, "peak": peak}


def _in_a_process(kind: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.model", "--train", kind, "--rounds", str(rounds)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The training step of {kind} failed ({done.returncode}): {done.stderr[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- shared


def _unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(cross_attention_dim=TEXT, sample_size=LATENT).eval()  # diffusers' defaults are SD 1.5's


def _pixels() -> list[int]:
    with torch.device("meta"):
        return unet_macs(_unet(), (LATENT, LATENT), TEXT, TOKENS)[1]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def counted(asked: dict[int, list[float]]) -> dict[str, float]:
    """The FLOP bounds: stock MACs of one picture, and MoA ÷ stock, exact and for what the routers ask."""
    with torch.device("meta"):
        unet = _unet()
    stock, pixels = unet_macs(unet, (LATENT, LATENT), TEXT, TOKENS)
    shapes = layer_shapes(unet)
    halves = [moa_macs(shapes, pixels, TOKENS, {layer: both[half] for layer, both in asked.items()}) for half in (0, 1)]
    return {
        "stock_gmac": stock / 1e9,
        "exact_bound": 1 + moa_macs(shapes, pixels, TOKENS) / stock,
        "sparse_bound": 1 + statistics.mean(halves) / stock,
    }


def _ratio(times: dict[str, list[float]], name: str) -> float:
    """Median over the rounds of the ratio to the stock step of the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times["stock"], strict=True))


def main() -> None:
    """Measure everything, print the table, write runs/bench/model.json and the dated results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", choices=("moa", "full"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, whose first step is long")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    if options.train:
        print(json.dumps(training_step(options.train, options.rounds, device)))
        return
    console.print("the demo release: what its routers ask for, sparse against exact")
    routers = demo_routers()
    asked = routers["asked"]
    numbers: dict[str, Any] = {**counted(asked), "skip_below": SKIP_BELOW, "rounds": options.rounds}
    numbers["sparse_psnr_db"] = statistics.mean(routers["psnr"])
    numbers["sparse_psnr_db_worst"] = min(routers["psnr"])
    console.print("a denoising step: stock, exact, sparse")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    times = denoising_step(device, dtype, options.rounds, asked)
    numbers["step_seconds"] = {name: statistics.median(values) for name, values in times.items()}
    numbers["step_exact_ratio"], numbers["step_sparse_ratio"] = _ratio(times, "exact"), _ratio(times, "sparse")
    gc.collect()
    if not options.no_compile:
        compiled = compiled_step(device, dtype, options.rounds)
        numbers["compiled_seconds"] = {name: statistics.median(values) for name, values in compiled.items()}
        numbers["step_compiled_ratio"] = _ratio(compiled, "exact")
    console.print("a training step: MoA, then full fine-tuning")
    moa, full = (_in_a_process(kind, max(2, options.rounds // 2)) for kind in ("moa", "full"))
    numbers["train_seconds"] = {"moa": statistics.median(moa["seconds"]), "full": statistics.median(full["seconds"])}
    numbers["train_step_ratio"] = numbers["train_seconds"]["moa"] / numbers["train_seconds"]["full"]
    numbers["train_memory_gib"] = {"moa": moa["peak"] / 2**30, "full": full["peak"] / 2**30}
    numbers["train_memory_ratio"] = moa["peak"] / full["peak"]
    numbers |= {
        "date": date.today().isoformat(),
        "machine": f"{machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        numbers["machine"] = torch.cuda.get_device_name(device)
    table = _table(numbers)
    console.print(table, markup=False)
    out = Path("runs/bench/model.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    console.print(f"{out}")
    results = Path(__file__).parent / "results" / f"{numbers['date']}-model-{device.type}.md"
    results.write_text(table, "utf-8")
    console.print(f"{results}")


def _of(seconds: dict[str, float], one: str, other: str) -> str:
    return f"{seconds[one]:.2f} s ÷ {seconds[other]:.2f} s"


def _table(numbers: dict[str, Any]) -> str:
    """The numbers as Markdown, ratios first."""
    step, train, memory = numbers["step_seconds"], numbers["train_seconds"], numbers["train_memory_gib"]
    rows = [
        ("denoising step, exact ÷ stock", "step_exact_ratio", _of(step, "exact", "stock"), "≤ 1.26"),
        ("… FLOP bound of it", "exact_bound", f"stock {numbers['stock_gmac']:.1f} GMAC a picture", ""),
        ("denoising step, sparse ÷ stock", "step_sparse_ratio", f"{step['sparse']:.2f} s", "≤ 1.12"),
        ("… FLOP bound of it", "sparse_bound", f"R_1 below {numbers['skip_below']} left out", ""),
        (
            "sparse against exact, PSNR (dB)",
            "sparse_psnr_db",
            f"mean of {2 * PEOPLE} pictures, the worst {numbers['sparse_psnr_db_worst']:.1f}",
            "≥ 40",
        ),
        ("training step ÷ full fine-tuning's", "train_step_ratio", _of(train, "moa", "full"), "≤ 0.95"),
        (
            "peak memory ÷ full fine-tuning's",
            "train_memory_ratio",
            f"{memory['moa']:.1f} GiB ÷ {memory['full']:.1f} GiB",
            "≤ 0.75",
        ),
    ]  # fmt: skip
    if "step_compiled_ratio" in numbers:
        compiled = numbers["compiled_seconds"]
        rows.insert(2, ("the same through torch.compile", "step_compiled_ratio", _of(compiled, "exact", "stock"), ""))
    lines = [
        f"# MoA's speed, {numbers['date']}",
        "",
        f"{numbers['machine']}, torch {numbers['torch']}. Stable Diffusion 1.5's size, 64 × 64 latents, batch 2",
        f"= guidance; training with {TRAIN_ROWS} row. Medians of {numbers['rounds']} rounds, stock and MoA in turn.",
        "Again: `make bench-model`.",
        "",
        "| measure | figure | from | goal |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {numbers[key]:.3f} | {source} | {goal} |" for name, key, source, goal in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
