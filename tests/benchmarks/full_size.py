"""MoA at full size: `make full-size`. Stable Diffusion 1.5 and SDXL, their published configurations, random weights.

For each, in a process of its own: attach, a training step, guided denoising steps, save, load. Every claim is checked,
and a failed one is the command's exit code; sizes, seconds and the peak of the memory go into the table.
"""

import argparse
import gc
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from rich.console import Console
from torch import Tensor

from moa_model import Batch, MoAAdapter, MoATrainingModule, Subjects
from moa_model.architectures import PUBLISHED_BASES
from moa_model.files import write_text
from moa_model.layers import penalised_blocks
from tests.benchmarks.machine import machine

TOKENS, WORD, IMAGE = 77, 5, 768  # a subject at token 5; CLIP ViT-L/14's projected embedding
MEMORY_GIB = 12.0
GUIDANCE = 5.0
console = Console(stderr=True)
SDXL = dict(PUBLISHED_BASES["stabilityai/stable-diffusion-xl-base-1.0"].unet)


@dataclass(frozen=True)
class Model:
    """One base, and how it is run so that it fits."""

    title: str
    config: dict[str, Any]
    dtype: torch.dtype
    latent: int
    text: int
    blocks_of_width: dict[int, int]
    """Channels → transformer blocks, counted by hand from the published architecture."""
    penalised: int
    optimizer: str


MODELS = {
    # Its widths, blocks and heads are diffusers' defaults.
    "sd15": Model(
        "Stable Diffusion 1.5",
        {"cross_attention_dim": 768, "sample_size": 64},
        torch.float32,
        64,
        768,
        {320: 5, 640: 5, 1280: 6},
        11,
        "AdamW",
    ),
    # Half precision, also of the experts, SGD and a quarter of the side: else a step would not fit MEMORY_GIB.
    "sdxl": Model("SDXL", SDXL, torch.bfloat16, 32, 2048, {640: 10, 1280: 60}, 65, "SGD"),
}


@dataclass
class Report:
    """What was measured of one model, and which claims held."""

    model: str
    dtype: str
    latent: int
    optimizer: str
    sizes: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    claims: dict[str, bool] = field(default_factory=dict)
    peak_gib: float = 0.0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Say what is going on, and keep how long it took."""
        console.print(f"{self.model}: {what} …", end=" ")
        started = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - started
        console.print(f"{self.seconds[what]:.1f} s, peak {_peak_gib():.1f} GiB", markup=False)

    def claim(self, sentence: str, holds: bool) -> None:
        """Keep whether it held; the table shows all, whichever failed."""
        self.claims[sentence] = bool(holds)
        if not holds:
            console.print(f"{self.model}: NOT SO: {sentence}", style="red")


def measure(name: str) -> Report:
    """Everything about one model; a fresh process, so that the peak of the memory is its own."""
    model = MODELS[name]
    report = Report(model.title, str(model.dtype).removeprefix("torch."), model.latent, model.optimizer)
    torch.manual_seed(0)
    torch.set_default_dtype(model.dtype)  # modules are made in it: the peak holds no copy in single precision
    with report.timed("build the U-Net"):
        unet = UNet2DConditionModel(**model.config).eval().requires_grad_(False)
    with report.timed("make an adapter for it and attach it"):
        processors = dict(unet.attn_processors)
        adapter = MoAAdapter.for_unet(unet, IMAGE).attach(unet).eval()
    _sizes(report, model, unet, adapter)

    inputs = _inputs(model)
    subjects = Subjects(
        torch.randn(2, 1, IMAGE), torch.tensor([[-1], [WORD]]), share_B=torch.ones(2), scale_BS=torch.ones(2, 1)
    )
    with report.timed("guided denoising step, stock"):
        stock = _step(unet, inputs)
    with adapter.prior_only():
        report.claim("prior-forced = stock, bit for bit", torch.equal(_step(unet, inputs, subjects), stock))
    with (
        torch.no_grad()
    ):  # as if it had learned something: a fresh adapter's first routers and MLP have no gradient yet
        adapter.prompt.mlp[-1].weight.normal_(0, 0.02)
        for layer in adapter.layers:
            layer.expert.out.weight.mul_(1.02)
    _train(report, model, unet, adapter, inputs)
    adapter.eval().prior_only_above = adapter.config.prior_only_above
    with report.timed("guided denoising step, MoA"):
        drawn = _step(unet, inputs, subjects)
    report.claim(
        "a subject changes the step, and it is finite", bool(drawn.isfinite().all() and (drawn != stock).any())
    )

    with tempfile.TemporaryDirectory(prefix="moa-full-size-") as folder:
        with report.timed("save"):
            adapter.save_pretrained(folder)
        file = (Path(folder) / "adapter.safetensors").stat().st_size
        report.sizes["adapter file (GB)"] = file / 1e9
        numbers = sum(parameter.numel() for parameter in adapter.parameters())
        report.claim(
            "the file is the adapter's numbers and a header",
            0 <= file - numbers * model.dtype.itemsize < 200_000,
        )
        adapter.detach(unet)
        report.claim(
            "detach puts the very processors back", all(unet.attn_processors[k] is p for k, p in processors.items())
        )
        del adapter
        gc.collect()
        with report.timed("load and attach"):
            loaded = MoAAdapter.from_pretrained(folder).attach(unet)
    report.claim("saved and loaded: the same numbers, bit for bit", torch.equal(_step(unet, inputs, subjects), drawn))
    loaded.detach(unet)
    report.claim("detached = stock, bit for bit", torch.equal(_step(unet, inputs), stock))
    report.peak_gib = _peak_gib()
    report.claim(f"peak memory below {MEMORY_GIB:.0f} GiB", report.peak_gib < MEMORY_GIB)
    return report


def _sizes(report: Report, model: Model, unet: UNet2DConditionModel, adapter: MoAAdapter) -> None:
    """Counts of blocks, layers and parameters, against what the published architecture says."""
    shapes = adapter.config.layers
    blocks = sum(model.blocks_of_width.values())
    penalised = penalised_blocks(shapes)
    experts = _count(layer.expert for layer in adapter.layers)
    # Self-attention: W_q, W_k, W_v, W_out and its bias; cross-attention takes keys and values from the text.
    by_hand = sum(
        count * ((4 * width + 1) * width + (2 * width + 2 * model.text + 1) * width)
        for width, count in model.blocks_of_width.items()
    )
    own = set(map(id, adapter.parameters()))
    report.sizes |= {
        "U-Net (M)": sum(p.numel() for p in unet.parameters() if id(p) not in own) / 1e6,
        "experts (M)": experts / 1e6,
        "routers (M)": _count(layer.router for layer in adapter.layers) / 1e6,
        "prompt MLP (M)": _count([adapter.prompt]) / 1e6,
        "transformer blocks": blocks,
        "penalised blocks": len(penalised),
    }
    report.claim(f"{blocks} transformer blocks, {2 * blocks} MoA layers", len(shapes) == 2 * blocks)
    report.claim(
        f"{model.penalised} penalised blocks of {blocks}, without the first two and the last three",
        penalised == set(range(2, blocks - 3)) and len(penalised) == model.penalised,
    )
    report.claim(f"the experts have {by_hand / 1e6:.1f} M parameters, as counted by hand", experts == by_hand)


def _train(report: Report, model: Model, unet: UNet2DConditionModel, adapter: MoAAdapter, inputs: dict) -> None:
    """One optimiser step on one sample; the base must stay as it was."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    module = MoATrainingModule(unet, adapter, scheduler.config, lambda_object=1e-4).to(model.dtype)
    base = _digest(unet, adapter)
    before = [layer.expert.query.weight.clone() for layer in adapter.layers]
    kinds: dict[str, Any] = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}
    optimizer = kinds[model.optimizer](module.optimizer_groups(1e-5 if model.optimizer == "AdamW" else 1.0))
    masks = torch.zeros(1, 1, model.latent, model.latent)
    masks[..., model.latent // 4 :, model.latent // 5 : model.latent * 4 // 5] = 1
    shape = (1, 4, model.latent, model.latent)
    more = inputs.get("added_cond_kwargs")
    added = {} if more is None else {
        "pooled": more["text_embeds"][1:], "null_pooled": more["text_embeds"][0], "time_ids": more["time_ids"][1:],
    }  # fmt: skip
    batch = Batch(
        latents=torch.randn(shape),
        text=inputs["encoder_hidden_states"][1:],
        null_text=inputs["encoder_hidden_states"][0],
        image_embeds=torch.randn(1, 1, IMAGE),
        tokens=torch.tensor([[WORD]]),
        masks=masks,
        noise=torch.randn(shape),
        timesteps=torch.tensor([500]),
        dropped=torch.tensor([False]),
        **added,
    )
    with report.timed("training step"):
        losses = module(batch)
        losses.total.backward()
        own = set(map(id, adapter.parameters()))
        reached = [p.grad is not None and bool(p.grad.isfinite().all() and p.grad.any()) for p in adapter.parameters()]
        untouched = not any(p.requires_grad or p.grad is not None for p in unet.parameters() if id(p) not in own)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    module.requires_grad_(False)
    report.claim("the losses are finite", all(bool(loss.isfinite()) for loss in losses))
    report.claim(
        "gradients reach every expert, router and the prompt MLP, and nothing else", all(reached) and untouched
    )
    report.claim("the base's weights are the same after the step (BLAKE2 of all)", _digest(unet, adapter) == base)
    moved = (not torch.equal(a, layer.expert.query.weight) for a, layer in zip(before, adapter.layers, strict=True))
    report.claim("the step changes every expert", all(moved))


def _inputs(model: Model) -> dict[str, Any]:
    """A guided step's: two rows, the unconditional one first."""
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, model.latent, model.latent).expand(2, -1, -1, -1),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(2, TOKENS, model.text),
    }
    if "addition_embed_type" in model.config:
        side = 8.0 * model.latent
        sizes = torch.tensor([[side, side, 0, 0, side, side]]).expand(2, -1)
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 1280), "time_ids": sizes}
    return inputs


@torch.no_grad()
def _step(unet: UNet2DConditionModel, inputs: dict[str, Any], subjects: Subjects | None = None) -> Tensor:
    bound = {} if subjects is None else {"cross_attention_kwargs": {"moa": subjects}}
    plain, conditional = unet(**inputs, **bound).sample.chunk(2)
    return plain + GUIDANCE * (conditional - plain)


def _digest(unet: UNet2DConditionModel, adapter: MoAAdapter) -> str:
    own = set(map(id, adapter.parameters()))
    digest = hashlib.blake2b()
    for parameter in unet.parameters():
        if id(parameter) not in own:
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _count(modules: Any) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure both models, print the table, write runs/bench/full_size.json and the dated results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="one alone, in this process; its report as JSON")
    only = parser.parse_args().model
    if only:
        print(json.dumps(asdict(measure(only))))
        return
    started = time.perf_counter()
    reports = {name: _in_a_process(name) for name in MODELS}
    whole = {"date": date.today().isoformat(), "machine": machine(), "torch": torch.__version__}
    whole |= {"threads": torch.get_num_threads(), "seconds": time.perf_counter() - started}
    table = _table(whole, list(reports.values()))
    print(table)
    out = Path("runs/bench/full_size.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(whole | {"models": reports}, indent=2) + "\n")
    results = Path(__file__).parent / "results" / f"{whole['date']}-full-size.md"
    results.parent.mkdir(exist_ok=True)
    write_text(results, table)
    console.print(f"{out}\n{results}", markup=False)
    failed = [
        f"{one['model']}: {claim}" for one in reports.values() for claim, held in one["claims"].items() if not held
    ]
    if failed:
        raise SystemExit("Not so at full size: " + "; ".join(failed))


def _in_a_process(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.full_size", "--model", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{MODELS[name].title} at full size failed ({done.returncode}); its last words are above.")
    return json.loads(done.stdout.splitlines()[-1])


def _table(whole: dict[str, Any], reports: list[dict[str, Any]]) -> str:
    """Sizes, seconds and claims as Markdown, a column per model."""

    def shown(number: float, digits: int) -> str:
        return f"{number:,}" if isinstance(number, int) else f"{number:,.{digits}f}"

    def rows(part: str, digits: int) -> list[str]:
        return [
            f"| {what} | " + " | ".join(shown(one[part][what], digits) for one in reports) + " |"
            for what in reports[0][part]
        ]

    claims = [
        f"| {one['model']} | {claim} | {'yes' if held else 'NO'} |"
        for one in reports
        for claim, held in one["claims"].items()
    ]
    lines = [
        f"# MoA at full size, {whole['date']}",
        "",
        f"{whole['machine']}, {whole['threads']} thread(s), torch {whole['torch']}; {whole['seconds']:.0f} s in all. "
        "Published configurations, random",
        "weights, one process each. Training: one sample. Denoising: two rows, guidance. Again: `make full-size`.",
        "SDXL runs in half precision (experts too), with SGD and small latents, to stay below the memory's limit.",
        "",
        "| | " + " | ".join(one["model"] for one in reports) + " |",
        "| --- |" + " --- |" * len(reports),
        "| weights | " + " | ".join(one["dtype"] for one in reports) + " |",
        "| latents | " + " | ".join(f"{one['latent']} × {one['latent']}" for one in reports) + " |",
        "| optimiser | " + " | ".join(one["optimizer"] for one in reports) + " |",
        *rows("sizes", 2),
        *(row.replace("| ", "| seconds: ", 1) for row in rows("seconds", 1)),
        "| peak memory (GiB) | " + " | ".join(f"{one['peak_gib']:.2f}" for one in reports) + " |",
        "",
        "| model | claim | holds |",
        "| --- | --- | --- |",
        *claims,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
