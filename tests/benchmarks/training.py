"""The training plane's speed: `make bench-training`, which on a machine with a GPU runs `training_gpu` beside it too.

Loader: samples of Stable Diffusion 1.5's sizes in 1,000 shards, each sample's bytes in our exact order, beside plain
`webdataset` with a shuffle of its own on the same shards, and beside reading the files' bytes one after another; all
three from the page cache, in one thread, in turn; the median of the rounds' ratios. Shards are verified when they are
first opened: that is measured apart, and so is what it costs a resumed process where a window's shards are as large as
the preset says. Steps: the demo's base model by Ray Train, one worker and two (gloo), with a
thread each; and, as the machine's limit, the same steps by two processes that know nothing of each other beside one.
Checkpoints: what steps with a checkpoint take longer than steps without, one in a hundred having one.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from rich.console import Console

from flows.checkpoints import CheckpointWriter
from flows.run import Run
from flows.session import prepare_environment
from flows.train import finish, fit, plan_training
from flows.training_loader import batches
from flows.training_samples import StepBatches, TrainingSamples
from infra.model_files import ZOO
from infra.ray_session import ray_session
from infra.settings import Settings, TrainSettings, load_settings
from infra.shard_cache import ShardCache
from infra.storage import DirectoryStore
from moa_model import EMA, MoAAdapter, MoATrainingModule, Snapshot
from preprocessing.catalog import ShardRow, store_shard
from preprocessing.shards import tar_pieces
from tests.benchmarks.machine import busy_machine
from tests.training_shards import write_shards

console = Console(highlight=False)
RESULTS = Path(__file__).parent / "results"
BATCH = 16  # the demo's
_PARTS = {"jpg": 60_000, "instances.png": 3_000, "moments.npy": 65_664, "text.npy": 118_400, "image_embeds.npy": 6_272}
_GOALS = {
    "loader_vs_webdataset": "≥ 1.0",
    "loader_vs_raw": "≥ 0.8",
    "resume_seconds": "≤ 5",
    "two_worker_speedup": "≥ 1.9",
    "data_wait": "≤ 0.02",
    "checkpoint_stall": "≤ 0.01",
}


def loader(folder: Path, shards: int, per_shard: int, large: int, rounds: int) -> dict[str, Any]:
    """loader_vs_webdataset, loader_vs_raw, resume_seconds and what they come from."""
    import webdataset

    store = DirectoryStore(folder / "store")
    rows = _random_shards(store, shards, per_shard)
    settings = load_settings("sd15", folder / "workspace").train
    files = [str(store.root / row.object_key) for row in rows]
    samples = TrainingSamples(ShardCache(store, folder / "cache", 1), rows, settings)

    def ours() -> int:
        return sum(sum(map(len, samples.raw(position).parts.values())) for position in range(len(samples)))

    def theirs() -> int:
        # Shards and a buffer as large as ours: 16 shards' samples.
        data = webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False).shuffle(16 * per_shard)
        return sum(len(value) for sample in data for name, value in sample.items() if not name.startswith("__"))

    def raw() -> int:
        return sum(len(Path(file).read_bytes()) for file in files)

    verified = _seconds(ours)[0]
    turns: list[dict[str, float]] = []
    for number in range(rounds):
        turn = {name: _seconds(work) for name, work in (("ours", ours), ("webdataset", theirs), ("raw", raw))}
        assert turn["ours"][1] == turn["webdataset"][1], "both read every sample once"
        turns.append(
            {
                name: seconds / (1 if name == "raw" else turn[name][1] / turn["raw"][1])
                for name, (seconds, _) in turn.items()
            }
        )  # for as many bytes as the files have
        console.print(f"  {number + 1}: " + "  ".join(f"{name} {each:.2f} s" for name, each in turns[-1].items()))
    large_store = DirectoryStore(folder / "large")
    large_rows = _random_shards(large_store, settings.shuffle_shards, large)
    return {
        "loader_vs_webdataset": statistics.median(turn["webdataset"] / turn["ours"] for turn in turns),
        "loader_vs_raw": statistics.median(turn["raw"] / turn["ours"] for turn in turns),
        "resume_seconds": _resumed(store, rows, settings, rounds),
        "resume_seconds_of_large_shards": _resumed(large_store, large_rows, settings, rounds),
        "loader_samples_per_second": len(samples) / statistics.median(turn["ours"] for turn in turns),
        "loader_first_epoch_samples_per_second": len(samples) / verified,
        "decoded_samples_per_second": _decoded(folder),
        "loader_shards": shards,
        "shard_mb": _megabytes(store, rows),
        "large_shard_mb": _megabytes(large_store, large_rows),
    }


def _resumed(store: DirectoryStore, rows: list[ShardRow], settings: TrainSettings, rounds: int) -> float:
    """Seconds until a process that knows nothing yet has a batch from the middle of the shards: what it opens, it
    verifies first."""

    def batch() -> int:
        fresh = TrainingSamples(ShardCache(store, Path(store.root), 1), rows, settings)
        middle = len(fresh) // 2
        return sum(len(fresh.raw(position).key) for position in range(middle, middle + settings.batch_size))

    return statistics.median(_seconds(batch)[0] for _ in range(rounds))


def _megabytes(store: DirectoryStore, rows: list[ShardRow]) -> float:
    return statistics.mean((store.root / row.object_key).stat().st_size for row in rows) / 1e6


def _random_shards(store: DirectoryStore, shards: int, per_shard: int) -> list[ShardRow]:
    about = json.dumps({"caption": "a man", "subjects": [{"token": 2}]}).encode().ljust(900)
    rows = []
    for shard in range(shards):
        parts = [
            (f"{shard:06d}-{number:04d}", {**{name: os.urandom(size) for name, size in _PARTS.items()}, "json": about})
            for number in range(per_shard)
        ]
        rows.append(store_shard(store, "shard", f"{shard:06d}", "f", tar_pieces(parts), per_shard))
    return rows


def _decoded(folder: Path) -> float:
    """Samples a second that become batches, with their noise, in one thread."""
    store = DirectoryStore(folder / "decoded")
    rows = write_shards(store, [32] * 4, latent=(4, 64, 64), text=(77, 768), features=768)
    settings = load_settings("sd15", folder / "workspace").train
    samples = TrainingSamples(ShardCache(store, folder / "cache", 1), rows, settings)
    source = StepBatches(samples, settings, np.zeros((77, 768), np.float16), 0.18215)
    source[0]
    seconds = statistics.median(_seconds(lambda: len(source[1].batch))[0] for _ in range(3))
    return settings.batch_size / seconds


def steps(folder: Path, count: int, rounds: int, batch_size: int = BATCH) -> dict[str, Any]:
    """two_worker_speedup and data_wait, by what the training itself reports; beside it machine_limit: what the speedup
    would be if workers had nothing to do with each other. All in turn; medians of the rounds."""
    prepare_environment()
    turns: list[dict[str, float]] = []
    for number in range(rounds):
        turn: dict[str, float] = {}
        for workers in (1, 2):
            trained = _trained(_demo(folder / f"trained-{number}-{workers}", count, workers, batch_size))
            turn[f"trained_{workers}"] = trained["speed/images_per_second"]
            turn[f"waited_{workers}"] = trained["speed/data_wait"]
            turn[f"alone_{workers}"] = _alone(
                _demo(folder / f"alone-{number}-{workers}", count, 1, batch_size), workers
            )
        turns.append(turn)
        shown = "  ".join(f"{name} {value:.1f}" for name, value in turn.items() if not name.startswith("waited"))
        console.print(f"  {number + 1}: {shown} images/s")
    return {
        "two_worker_speedup": statistics.median(turn["trained_2"] / turn["trained_1"] for turn in turns),
        "machine_limit": statistics.median(turn["alone_2"] / turn["alone_1"] for turn in turns),
        "data_wait": max(statistics.median(turn[f"waited_{workers}"] for turn in turns) for workers in (1, 2)),
        "images_per_second": {
            workers: round(statistics.median(turn[f"trained_{workers}"] for turn in turns), 1) for workers in (1, 2)
        },
        "cores": os.cpu_count(),
    }


def _trained(settings: Settings) -> dict[str, float]:
    """Tag → the median of its rows, by Ray Train."""
    run = Run(settings)
    plan = {**plan_training(run, from_scratch=True), "damaged": []}
    with ray_session(settings.ray):
        fit(run, plan)
        curves = _curves(run, plan["run_id"])
        finish(run, plan)
    return {tag: statistics.median(values[1:]) for tag, values in curves.items()}  # the first row warms up


def _alone(settings: Settings, workers: int) -> float:
    """Images a second of processes that each take their share of every step: no Ray, and no word between them."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(workers + 1)
    processes = [
        spawn.Process(target=_steps_alone, args=(settings, rank, workers, barrier), daemon=True)
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    barrier.wait(timeout=300)
    started = time.perf_counter()
    barrier.wait(timeout=3600)
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes), "all steps were taken"
    return settings.train.batch_size * settings.train.steps / seconds


def _steps_alone(settings: Settings, rank: int, workers: int, barrier: Barrier) -> None:
    torch.set_num_threads(1)
    module, source = _training(settings, Run(settings).training_shards(), rank, workers)
    optimizer, ema = torch.optim.AdamW(module.optimizer_groups(1e-4)), EMA(module.adapter, 0.99)
    for step, one in enumerate(batches(source, [0, *range(settings.train.steps)], settings.train, pin=False)):
        if step == 1:  # the first one warms up
            barrier.wait()
        (module(one.batch).total / workers).backward()
        torch.nn.utils.clip_grad_norm_(module.adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update()
    barrier.wait()


def _demo(workspace: Path, count: int, workers: int, batch_size: int = BATCH) -> Settings:
    """The demo's training on shards of random numbers."""
    place = {"train.workers": str(workers), "train.steps": str(count), "train.batch_size": str(batch_size)}
    place |= {"train.checkpoint_every": str(count), "train.pictures_every": "0"}  # there is nobody to draw
    settings = load_settings("demo", workspace, place)
    run, unet = Run(settings), json.loads((ZOO / "base" / "unet" / "config.json").read_text())
    clip = json.loads((ZOO / "clip" / "config.json").read_text())
    text = json.loads((ZOO / "base" / "text_encoder" / "config.json").read_text())
    rows = write_shards(
        run.store,
        [64] * 4,
        latent=(unet["in_channels"], unet["sample_size"], unet["sample_size"]),
        text=(text["max_position_embeddings"], unet["cross_attention_dim"]),
        features=clip["projection_dim"],
        fingerprint=run.fingerprints["shard"],
    )
    run.catalog.commit(rows)
    return settings


def _curves(run: Run, run_id: str) -> dict[str, list[float]]:
    """Tag → its values in the training's event files, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        for key in run.store.list(f"runs/{run_id}/tensorboard/"):
            Path(folder, key.rpartition("/")[2]).write_bytes(run.store.get(key))
        events = EventAccumulator(folder)
        events.Reload()
        return {tag: [one.value for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def checkpoints(folder: Path, rounds: int, batch_size: int = BATCH) -> dict[str, Any]:
    """checkpoint_stall: what a checkpoint adds to the steps beside it, over a hundred steps."""
    settings = _demo(folder / "stall", 100, 1, batch_size)
    run = Run(settings)
    module, source = _training(settings, run.training_shards())
    optimizer = torch.optim.AdamW(module.optimizer_groups(1e-4))
    ema = EMA(module.adapter, 0.99)
    writer = CheckpointWriter(run.store, "bench", 2, 0, console.print)

    def some_steps(first: int, save: bool) -> float:
        started = time.perf_counter()
        for step in range(first, first + 6):
            module(source[step].batch).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update()
            if save and step == first:
                writer.save(step + 1, Snapshot.take(module.adapter, ema, optimizer, step + 1).files, 1.0)
        return time.perf_counter() - started

    some_steps(0, save=True)
    without, with_one = [], []
    for turn in range(rounds):
        without.append(some_steps(6 + 12 * turn, save=False))
        with_one.append(some_steps(12 + 12 * turn, save=True))
    writer.finish(1000, Snapshot.take(module.adapter, ema, optimizer, 1000).files, 1.0)
    step = statistics.median(without) / 6
    return {
        "checkpoint_stall": (statistics.median(with_one) - statistics.median(without)) / (100 * step),
        "step_ms": 1000 * step,
        "checkpoint_mb": sum(run.store.sizes("runs/bench/checkpoints/step-00001000/").values()) / 1e6,
    }


def _training(
    settings: Settings, rows: list[ShardRow], rank: int = 0, workers: int = 1
) -> tuple[MoATrainingModule, StepBatches]:
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(ZOO / "base" / "unet", use_safetensors=True)
    scheduler = DDPMScheduler.load_config(ZOO / "base" / "scheduler")
    samples = TrainingSamples(ShardCache(Run(settings).store, settings.workspace, 1), rows, settings.train)
    first = samples[0]
    adapter = MoAAdapter.for_unet(unet, first.image_embeds.shape[-1])
    source = StepBatches(samples, settings.train, np.zeros_like(first.text), 1.0, rank=rank, workers=workers)
    names = ("lambda_router", "lambda_object", "router_foreground", "lambda_preservation")
    weights = {name: getattr(settings.train, name) for name in names}
    return MoATrainingModule(unet, adapter, scheduler, blocks=settings.train.router_blocks, **weights), source


def _seconds(work: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


def table_of(numbers: dict[str, Any]) -> str:
    """All figures as Markdown, with the date and the machine's name."""
    rows = "\n".join(f"| {name} | {numbers[name]:.3g} | {goal} |" for name, goal in _GOALS.items() if name in numbers)
    others = "\n".join(f"- {name}: {value}" for name, value in _others(numbers))
    return f"""# The training plane's speed, {numbers["date"]}

{numbers["machine"]}; torch {torch.__version__}, a thread for each worker. Again: `make bench-training`.

| measure | figure | goal |
| --- | --- | --- |
{rows}

{others}
"""


def _others(numbers: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in numbers.items():
        if name not in _GOALS and name not in ("machine", "date"):
            yield name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write runs/bench/training.json and the dated results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--per-shard", type=int, default=8, help="samples of 254 KB")
    parser.add_argument("--large", type=int, default=1380, help="samples of a shard as large as sd15's: 350 MB")
    parser.add_argument("--steps", type=int, default=30, help="of each training with one worker and with two")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="of all trainings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="the folder of training.json")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the dated page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    numbers: dict[str, Any] = {"machine": busy_machine(), "date": date.today().isoformat()}
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="moa-bench-", dir=options.out) as place:
        folder = Path(place).absolute()
        console.print(f"loader: {options.shards} shards of {options.per_shard} samples")
        numbers |= loader(folder, options.shards, options.per_shard, options.large, options.rounds)
        console.print("checkpoints")
        numbers |= checkpoints(folder, options.rounds, options.batch_size)
        console.print("steps")
        numbers |= steps(folder, options.steps, options.rounds, options.batch_size)
    table = table_of(numbers)
    console.print(table, markup=False)
    figures, page = options.out / "training.json", options.results / f"{numbers['date']}-training.md"
    figures.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    page.write_text(table, "utf-8")
    console.print(f"{figures}\n{page}")


if __name__ == "__main__":
    main()
