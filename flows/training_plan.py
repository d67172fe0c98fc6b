"""`moa train --dry-run`: what a training would need and cost, with the arithmetic; it starts and writes nothing.

Counted are the shapes alone: no weights, no catalog, no network and no GPU are needed.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.memory_advice import fits, rows_at_once
from flows.quantities import duration, in_bytes, in_flops, in_numbers
from infra.errors import UserError
from infra.model_files import folder_here, local_folder, resolve
from infra.model_mirror import is_mirror
from infra.settings import ModelReference, Settings, TrainSettings

if TYPE_CHECKING:
    from moa_model.architectures import BaseShape
    from moa_model.training_cost import Gathered, TrainingCost

# H100 SXM's datasheet, dense; fp32 outside the tensor cores.
_GPU_FLOPS = {"bf16": 989e12, "fp32": 67e12, "fp64": 67e12}


@dataclass(frozen=True)
class Assumptions:
    """What cannot be counted. The page names each of them."""

    gpu: str = "H100"
    gpu_bytes: float = 80e9  # as sold; the driver shows 5 GB more
    gpu_flops: float = _GPU_FLOPS["bf16"]
    mfu: float = 0.31
    """Model FLOPs utilisation: 31 % is the best public figure of this class (MLPerf, Stable Diffusion 2's U-Net,
    compiled and with CUDA graphs)."""
    launch_seconds: float = 0.1 / 32
    """For each attention layer, and no step is shorter: Stable Diffusion 1.5's 32 layers are ten thousand kernels with
    what lies between them, each kernel ten microseconds of Python and driver."""
    dollars_per_gpu_hour: float = 3.0
    """A round figure for a rented GPU: put in what yours costs; the bill is proportional to it."""
    reserve: float = 0.1
    """Of the activations: gradients of activations, kernels' workspaces, gaps between blocks. Not measured on a GPU."""

    def launching(self, layers: int) -> float:
        """Seconds for the kernels of a base with so many attention layers."""
        return self.launch_seconds * layers


class Figure(NamedTuple):
    """One line of the page."""

    part: str
    what: str
    value: float
    """As ``unit`` has it, not rounded."""
    unit: str
    shown: str
    arithmetic: str


@dataclass(frozen=True)
class _Training:
    """What is counted, what is asked for and what is assumed; from these three follows the rest."""

    cost: "TrainingCost"
    asked: TrainSettings
    assumed: Assumptions

    @property
    def rows(self) -> int:
        """Samples at once on each GPU: the micro batch."""
        return rows_at_once(self.asked, self.asked.workers)

    @property
    def pieces(self) -> int:
        """In how many of them a GPU takes its share of a batch."""
        return math.ceil(self.asked.batch_size / self.asked.workers / self.rows)

    @property
    def step_flops(self) -> int:
        return self.asked.batch_size * self.cost.sample_flops

    @property
    def arithmetic_seconds(self) -> float:
        return self.step_flops / (self.asked.workers * self.assumed.gpu_flops * self.assumed.mfu)

    @property
    def step_seconds(self) -> float:
        """A step's arithmetic, or launching its kernels, once for each piece of the batch, where that takes longer."""
        return max(self.arithmetic_seconds, self.pieces * self.assumed.launching(self.cost.layers))


class Counted(NamedTuple):
    """What the page needs of the models."""

    cost: "TrainingCost"
    base: "BaseShape"
    image_dim: int
    side: int
    """Of a latent."""


def plan_training(settings: Settings) -> dict[str, Any]:
    """{"preset", "figures": [Figure as a dict], "assumptions", "says": [sentences]}; a few seconds.

    Raises UserError where a model's configuration is neither here nor known, and for pictures that do not fit the base.
    """
    return describe(settings, count(settings))


def count(settings: Settings) -> Counted:
    """What the models that the settings name cost to train. Raises UserError as `plan_training` says."""
    from moa_model.training_cost import count_training

    asked, (base, image_dim, side) = settings.train, _shapes(settings)
    if asked.precision == "fp64":
        raise UserError("A dry run counts for GPUs, which train in bf16 or fp32: set train.precision to one of them.")
    cost = count_training(
        base,
        image_dim,
        (side, side),
        precision=asked.precision,
        blocks=asked.router_blocks,
        preserving=asked.lambda_preservation > 0,
        frozen_precision=asked.frozen_precision,
        activation_checkpointing=asked.activation_checkpointing,
    )
    return Counted(cost, base, image_dim, side)


def flops_per_image(settings: Settings) -> int | None:
    """Of a training step, what an MFU counts: not what activation checkpointing computes again. None where unknown."""
    from moa_model.training_cost import count_flops

    try:
        base, image_dim, side = _shapes(settings)
    except UserError:
        return None
    asked = settings.train
    preserving = asked.lambda_preservation > 0
    return count_flops(base, image_dim, (side, side), blocks=asked.router_blocks, preserving=preserving)


def _shapes(settings: Settings) -> "tuple[BaseShape, int, int]":
    """The base's, the width of an image embedding, and the side of a latent."""
    base = _base_shape(settings)
    side, rest = divmod(settings.ingest.pixels, base.pixels_per_latent)
    if rest or not side:
        raise UserError(
            f"ingest.pixels = {settings.ingest.pixels} is no multiple of {base.pixels_per_latent}, as the base's "
            "latents want it: set it to one."
        )
    return base, _image_dim(settings), side


def describe(settings: Settings, counted: Counted) -> dict[str, Any]:
    """The page, as `plan_training` gives it, of what was counted for these settings."""
    assumed = Assumptions(gpu_flops=_GPU_FLOPS[settings.train.precision])
    training = _Training(counted.cost, settings.train, assumed)
    figures = [
        *_sizes(counted.cost),
        *_memory(training),
        *_work(training),
        *_data(training, _sample_files(settings, counted)),
        *_checkpoints(training),
        *_bill(training),
    ]
    return {
        "preset": settings.name,
        "figures": [figure._asdict() for figure in figures],
        "assumptions": asdict(assumed),
        "says": [*fits(counted.cost, settings.train, assumed), _assumes(assumed, counted.cost.layers)],
    }


def show_plan(plan: dict[str, Any]) -> None:
    """The figures as a table, and the sentences."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(title=f"Training with preset {plan['preset']}", title_justify="left", header_style="bold")
    table.add_column("")
    table.add_column("what", overflow="fold")
    table.add_column("comes to", justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for part, lines in groupby(plan["figures"], lambda figure: figure["part"]):
        for place, line in enumerate(lines):
            table.add_row(*map(Text, (part if not place else "", line["what"], line["shown"], line["arithmetic"])))
        table.add_section()
    console.print(table)
    for sentence in plan["says"]:
        console.print(sentence, markup=False)


def _sizes(cost: "TrainingCost") -> list[Figure]:
    experts, routers, prompt = cost.expert_parameters, cost.router_parameters, cost.prompt_parameters
    parts = f"experts {experts:,} + routers {routers:,} + prompt {prompt:,}"
    return [
        _figure("model", "base, frozen", cost.base_parameters, "parameters", f"its U-Net: {cost.base_parameters:,}"),
        _figure("model", "adapter, trained", cost.adapter_parameters, "parameters", parts),
    ]


def _memory(training: _Training) -> list[Figure]:
    cost, asked, assumed = training.cost, training.asked, training.assumed
    held, adapter = cost.memory(training.rows, asked.workers, asked.sharding), f"{cost.adapter_parameters:,}"
    gathered = None if asked.sharding == "none" or asked.workers == 1 else cost.gathered[asked.sharding]
    part = "" if gathered is None else f" ÷ {asked.workers} GPUs"
    how = {
        "base": f"{cost.base_parameters:,} × {cost.frozen_bytes} B{part if asked.sharding == 'fsdp' else ''}: frozen "
        f"weights in {asked.frozen_precision}",
        "adapter": f"{adapter} × 4 B{part}",
        "gradients": f"{adapter} × 4 B{part}",
        "gradient_buckets": f"{adapter} × 4 B: summed over {asked.workers} GPUs",
        "optimizer": f"{adapter} × 2 × 4 B{part}: AdamW's moments",
        "average": f"{adapter} × 4 B{part}",
        "gathered": _whole_at_work(gathered),
        "casts": f"bf16 copies of {'other' if gathered else 'the'} weights, which autocast keeps for backward passes",
        "activations": f"{training.rows} samples a GPU × {in_bytes(cost.activation_bytes)}, {asked.precision}"
        + (", between the blocks" if cost.recomputed_bytes else ""),
        "recomputed": f"{training.rows} samples × {in_bytes(cost.recomputed_bytes)}: the largest block's, in its "
        "backward pass",
    }
    held_ones = {name: size for name, size in held.items() if size}
    reserve = assumed.reserve * (held["activations"] + held["recomputed"])
    total, part = sum(held.values()) + reserve, "memory per GPU"
    return [
        *(_figure(part, name.replace("_", " "), size, "bytes", how[name]) for name, size in held_ones.items()),
        _figure(part, "reserve", reserve, "bytes", f"{assumed.reserve:.0%} of the activations, assumed"),
        _figure(part, "together", total, "bytes", f"of the {assumed.gpu}'s {in_bytes(assumed.gpu_bytes)}"),
    ]


def _whole_at_work(gathered: "Gathered | None") -> str:
    if gathered is None:
        return ""
    ends = f"{in_bytes(gathered.always)} at the U-Net's ends + " if gathered.always else ""
    block, gradients = in_bytes(gathered.unit), in_bytes(gathered.unit_gradients)
    return f"whole while they work: {ends}3 × the largest block's {block} + its gradients' {gradients}"


def _work(training: _Training) -> list[Figure]:
    cost, batch, assumed = training.cost, training.asked.batch_size, training.assumed
    passes = f"forward {in_flops(cost.forward_flops)} + backward {in_flops(cost.backward_flops)}"
    passes += " with the blocks' forward again" if cost.recomputed_bytes else ""
    if cost.preserving:
        passes += f" + prior's own forward {in_flops(cost.prior_flops)}"
    seconds = training.step_seconds
    took = f"{in_flops(training.step_flops)} ÷ ({training.asked.workers} {assumed.gpu} × "
    took += f"{in_flops(assumed.gpu_flops)}/s × {assumed.mfu:.0%})"
    if seconds > training.arithmetic_seconds:
        took = f"launching its kernels, assumed; {took} = {duration(training.arithmetic_seconds)} would be less"
    return [
        _figure("work", "base's forward", cost.prior_flops, "FLOP", "a sample without the adapter, to compare"),
        _figure("work", "a sample", cost.sample_flops, "FLOP", passes),
        _figure("work", "a step", training.step_flops, "FLOP", f"{batch} samples × {in_flops(cost.sample_flops)}"),
        _figure("work", "a step takes", seconds, "seconds", took),
        _figure("work", "speed", batch / seconds, "images/s", f"{batch} images ÷ {duration(seconds)}"),
        *_exchange(training),
    ]


def _exchange(training: _Training) -> list[Figure]:
    """What each GPU sends in a step. Whether the arithmetic hides it depends on the network, which is not known."""
    cost, asked = training.cost, training.asked
    if asked.workers == 1:
        return []
    sent, gradients = cost.exchanged(training.pieces, asked.workers, asked.sharding), in_bytes(cost.gradient_bytes)
    ring = f"× {asked.workers - 1}/{asked.workers}"
    how = f"2 × gradients' {gradients} {ring}, once a step"
    if asked.sharding != "none":
        weights = f"{2 + cost.preserving} × weights' {in_bytes(cost.gathered[asked.sharding].weights)}"
        how = f"{training.pieces} piece{'s' * (training.pieces > 1)} × ({weights} + gradients' {gradients}) {ring}"
    return [_figure("work", "each GPU sends", sent, "bytes", how)]


def _sample_files(settings: Settings, counted: Counted) -> dict[str, tuple[int, str]]:
    """Bytes of each file of a sample in its shard, and how they come about."""
    from preprocessing.sample_size import sample_bytes

    _, base, image_dim, side = counted
    moments, text = (2 * base.latent_channels, side, side), (base.tokens, base.text_dim)
    sizes = sample_bytes(settings.shard, settings.ingest.pixels, moments, text, image_dim, pooled=base.pooled_dim)
    variants = settings.shard.reference_variants
    how = {
        "moments.npy": f"{' × '.join(map(str, moments))} × 2 B, header 128 B",
        "text.npy": f"{' × '.join(map(str, text))} × 2 B, header 128 B",
        "pooled.npy": f"{base.pooled_dim} × 2 B, header 128 B",
        "image_embeds.npy": f"1 subject × {variants} variants × {image_dim} × 2 B, header 128 B",
        "jpg": "assumed: bytes per pixel of a portrait",
        "instances.png": "assumed: bytes per pixel of a mask",
        "json": "assumed",
        "tar": f"{len(sizes) - 1} headers of 512 B, and files filled up to 512 B",
    }
    return {name: (size, how[name]) for name, size in sizes.items()}


def _data(training: _Training, files: dict[str, tuple[int, str]]) -> list[Figure]:
    speed, total = training.asked.batch_size / training.step_seconds, sum(size for size, _ in files.values())
    arrays = in_bytes(sum(size for name, (size, _) in files.items() if name.endswith(".npy")))
    rate = f"{speed:,.0f} images/s × {in_bytes(total)}, all GPUs together"
    return [
        *(_figure("data", name, size, "bytes", how) for name, (size, how) in files.items()),
        _figure("data", "a sample", total, "bytes", f"of them {arrays} arrays that are trained on"),
        _figure("data", "rate", total * speed, "bytes/s", rate),
    ]


def _checkpoints(training: _Training) -> list[Figure]:
    cost, asked = training.cost, training.asked
    steps, size = min(asked.checkpoint_every, asked.steps), cost.checkpoint_bytes
    written = [*range(steps, asked.steps, steps), asked.steps]
    every = {one for one in written if asked.keep_every and one % asked.keep_every == 0}
    kept = min(len(written), 1 + len(every | {*written[-asked.keep_last :]}))
    which = f"the last {asked.keep_last}, the best" + f", each {asked.keep_every:,}th step's" * bool(asked.keep_every)
    tensors = f"{cost.adapter_parameters:,} × (weight, average, AdamW's 2 moments) × 4 B"
    between = f"{steps:,} steps × {duration(training.step_seconds)}: the most that a crash costs"
    return [
        _figure("checkpoint", "one", size, "bytes", tensors),
        _figure("checkpoint", "all", len(written) * size, "bytes", f"{len(written):,} are written"),
        _figure("checkpoint", "kept", kept * size, "bytes", f"{kept:,} at most at the end: {which}"),
        _figure("checkpoint", "between two", steps * training.step_seconds, "seconds", between),
    ]


def _bill(training: _Training) -> list[Figure]:
    asked, price = training.asked, training.assumed.dollars_per_gpu_hour
    hours = asked.steps * training.step_seconds / 3600
    paid = f"{hours:.3g} h × {asked.workers} {training.assumed.gpu} × ${price:.2f} per GPU hour, assumed"
    work = f"{asked.steps:,} steps × {in_flops(training.step_flops)}"
    return [
        _figure("training", "work", asked.steps * training.step_flops, "FLOP", work),
        _figure(
            "training", "time", 3600 * hours, "seconds", f"{asked.steps:,} steps × {duration(training.step_seconds)}"
        ),
        _figure("training", "cost", hours * asked.workers * price, "dollars", paid),
    ]


def _assumes(assumed: Assumptions, layers: int) -> str:
    return (
        f"Assumed, not measured: {in_flops(assumed.gpu_flops)}/s (the {assumed.gpu}'s datasheet, dense), MFU "
        f"{assumed.mfu:.0%} (the best public figure of this class, compiled), no step below "
        f"{duration(assumed.launching(layers))} a piece of the batch, ${assumed.dollars_per_gpu_hour:.2f} per GPU "
        "hour, one subject a sample. Start-up, pictures on the way, evaluation and the stages before training are not "
        "in it."
    )


def _base_shape(settings: Settings) -> "BaseShape":
    from moa_model.architectures import PUBLISHED_BASES, read_base

    reference = settings.models.base
    folder = folder_here(reference)
    if folder is not None and (folder / "unet" / "config.json").is_file():
        return read_base(folder)
    if reference.location in PUBLISHED_BASES:
        return PUBLISHED_BASES[reference.location]
    raise _unknown(reference, "base", "unet/config.json")


def _image_dim(settings: Settings) -> int:
    from moa_model.architectures import PUBLISHED_IMAGE_DIMS, read_image_dim

    reference = settings.models.clip
    folder = folder_here(reference)
    if folder is not None and (folder / "config.json").is_file():
        return read_image_dim(folder)
    if reference.location in PUBLISHED_IMAGE_DIMS:
        return PUBLISHED_IMAGE_DIMS[reference.location]
    raise _unknown(reference, "clip", "config.json")


def _unknown(reference: ModelReference, kind: str, file: str) -> UserError:
    folder = local_folder(reference)
    if folder is None or is_mirror(reference.location):
        return UserError(
            f"The {kind} {reference.location!r} is not on this machine, and its {file} is not known without it: fetch "
            f"it first (moa doctor says how), or set models.{kind}.location to a folder."
        )
    resolve(reference, kind)  # which knows what to say of a folder that is not there
    return UserError(f"The {kind}'s folder {folder} holds no {file}: copy the whole model folder there.")


def _figure(part: str, what: str, value: float, unit: str, arithmetic: str) -> Figure:
    return Figure(part, what, value, unit, _SHOWN[unit](value), arithmetic)


_SHOWN: dict[str, Callable[[float], str]] = {
    "parameters": in_numbers,
    "bytes": in_bytes,
    "bytes/s": lambda rate: f"{in_bytes(rate)}/s",
    "FLOP": in_flops,
    "seconds": duration,
    "images/s": lambda rate: f"{rate:,.0f} images/s",
    "dollars": lambda paid: f"${paid:,.2f}",
}
