"""How fast the data plane is beside the bare work in it: `make bench-data`.

Each ratio is bare ÷ ours, in one run, turn and turn about. Ingest is bound by the processor and compared by the
processor time that it takes (user and system, all threads), which other work on the machine disturbs least. Caption and
segment prepare and read batches beside the model, and shards are bound by the disk: these are compared by the clock, so
they want a quiet machine; of shards, the best round of each.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from PIL import Image, features

from infra.settings import Settings, load_settings
from infra.storage import DirectoryStore
from preprocessing.catalog import store_shard
from preprocessing.ingesting import ingest_chunk
from preprocessing.shards import encode_npy, tar_pieces, write_tar
from preprocessing.sources import Record
from preprocessing.stages import build_shard
from tests.benchmarks.costs import console, cost_of, cpu_ratio, in_turn
from tests.benchmarks.data_models import models
from tests.benchmarks.data_report import ffhq, table_of
from tests.benchmarks.machine import busy_machine

# ---- ingest


def ingest(settings: Settings, folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """FFHQ's 1024² PNGs and cameras' JPEGs to 512²: read, decoded, resized, encoded; ours also checks and stores."""
    limits = settings.ingest.model_copy(update={"pixels": 512, "min_side": 256})
    store, found = DirectoryStore(folder / "store"), {}
    for kind, options in (("JPEG", {"quality": 92}), ("PNG", {})):
        paths = []
        for number in range(count):
            paths.append(folder / f"{number}.{kind.lower()}")
            _photo(number, 1024).save(paths[-1], kind, **options)
        records = [Record("folder", path.name, path) for path in paths]

        def bare(paths: list[Path] = paths) -> None:
            for path in paths:
                with Image.open(io.BytesIO(path.read_bytes())) as image:
                    small = image.convert("RGB").resize((512, 512), Image.Resampling.LANCZOS)
                small.save(io.BytesIO(), "JPEG", quality=95, subsampling=0)

        def ours(records: list[Record] = records) -> None:
            chunk = ingest_chunk(records, frozenset(), limits)
            assert chunk.tar is not None and len(chunk.keys) == count
            store_shard(store, "ingest", chunk.shard_id, "f", chunk.tar, count)

        console.print(f"ingest: {count} {kind} of 1024 pixels")
        costs = in_turn(rounds, bare=bare, ours=ours)
        found[f"ingest_{kind.lower()}_ratio"] = cpu_ratio(costs, "bare", "ours")
        found[f"ingest_{kind.lower()}_ms"] = 1000 * statistics.median(one.cpu for one in costs["ours"]) / count
    found["ingest_ratio"] = min(found["ingest_jpeg_ratio"], found["ingest_png_ratio"])
    return found | {"ingest_parts_ms": _parts(folder, count)}


def _parts(folder: Path, count: int) -> dict[str, float]:
    """Where the time of one picture goes, in processor milliseconds, and another library's decoder beside Pillow's."""
    jpegs = [(folder / f"{number}.jpeg").read_bytes() for number in range(count)]
    pngs = [(folder / f"{number}.png").read_bytes() for number in range(count)]
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs]
    small = [picture.resize((512, 512), Image.Resampling.LANCZOS) for picture in pictures]

    def encode(picture: Image.Image) -> object:
        return picture.save(io.BytesIO(), "JPEG", quality=95, subsampling=0)

    works: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "JPEG decoded by Pillow": (lambda data: Image.open(io.BytesIO(data)).load(), jpegs),
        "PNG decoded by Pillow": (lambda data: Image.open(io.BytesIO(data)).load(), pngs),
        "resized": (lambda picture: picture.resize((512, 512), Image.Resampling.LANCZOS), pictures),
        "JPEG encoded by Pillow": (encode, small),
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        works["JPEG decoded by simplejpeg"] = (simplejpeg.decode_jpeg, jpegs)
        arrays = [np.asarray(picture) for picture in small]
        works["JPEG encoded by simplejpeg"] = (
            lambda array: simplejpeg.encode_jpeg(array, quality=95, colorsubsampling="444"),
            arrays,
        )
    return {
        name: 1000 * min(cost_of(lambda: [work(item) for item in items]).cpu for _ in range(3)) / count  # noqa: B023
        for name, (work, items) in works.items()
    }


def _photo(number: int, side: int) -> Image.Image:
    """A smooth picture with grain: 1024² as JPEG 0.2 MB, as PNG 1.1 MB (FFHQ's own have 1.3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = np.stack([np.sin(6 * x + number) + y, np.cos(5 * y) + x, x * y * 2], -1)
    image = Image.fromarray(((waves - waves.min()) / np.ptp(waves) * 235).astype(np.uint8))
    grain = Image.effect_noise((side // 4, side // 4), 60).resize((side, side), Image.Resampling.BICUBIC)
    return Image.blend(image, grain.convert("RGB"), 0.15)


# ---- shards


def shard(folder: Path, photos: int, rounds: int) -> dict[str, Any]:
    """Samples of sd15's sizes into the store, with their digest, beside `tar` and `sync` of the same files.

    As many as one of its shards has, by default. A virtual machine's memory that was never touched is three times as
    slow to write to, whoever does it: it is touched before. The best round counts, of both.
    """
    _touch_free_memory()
    sizes = {
        "jpg": 60_000,
        "instances.png": 3_000,
        "moments.npy": 65_664,
        "text.npy": 118_400,
        "image_embeds.npy": 6_272,
    }
    samples = [
        (f"{number:064x}", {**{name: os.urandom(size) for name, size in sizes.items()}, "json": bytes(900)})
        for number in range(photos)
    ]
    (folder / "files").mkdir()
    for key, parts in samples:
        for name, data in parts.items():
            (folder / "files" / f"{key}.{name}").write_bytes(data)
    names = sorted(path.name for path in (folder / "files").iterdir())
    (folder / "list").write_text("\n".join(names))
    store = DirectoryStore(folder / "shards")
    out = folder / "bare.tar"

    def bare() -> None:
        command = ["tar", "--format=ustar", "--no-recursion", "-cf", str(out), "-T", str(folder / "list")]
        subprocess.run(command, cwd=folder / "files", check=True)
        subprocess.run(["sync", str(out)], check=True)

    def ours() -> None:
        store_shard(store, "shard", "s", "f", tar_pieces(samples), photos)

    size = sum(len(piece) for piece in tar_pieces(samples))
    console.print(f"shard: {photos} samples, {size / 1e6:.0f} MB")
    costs = in_turn(rounds, bare=bare, ours=ours)
    best = {name: min(one.wall for one in of) for name, of in costs.items()}
    return {
        "shard_ratio": best["bare"] / best["ours"],
        "shard_cpu_ratio": cpu_ratio(costs, "bare", "ours"),
        "shard_mb_per_s": size / 1e6 / best["ours"],
    }


def _touch_free_memory() -> None:
    """In a process of its own, which gives it back at its end."""
    code = "import mmap, psutil; size = int(0.8 * psutil.virtual_memory().available); area = mmap.mmap(-1, size)"
    code += "; [area.__setitem__(at, 1) for at in range(0, size, mmap.PAGESIZE)]"
    subprocess.run([sys.executable, "-c", code], check=True)


def memory(folder: Path, photos: int, per_shard: int = 1000) -> float:
    """Peak memory in MiB of joining and writing so many photos, shard by shard, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.data", "--join", str(photos), str(per_shard), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def join(photos: int, per_shard: int, folder: Path) -> None:
    """What `memory` measures: ingested, bound and text shards read and joined, the training shard written."""
    settings = load_settings("demo", folder).shard
    store, array = DirectoryStore(folder / "joined"), encode_npy(np.zeros((77, 16), np.float16))
    for first in range(0, photos, per_shard):
        keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(first, first + per_shard)]
        ingested = write_tar((key, {"jpg": bytes(2000), "json": b"{}"}) for key in keys)
        bound = write_tar((key, {"json": b'{"subjects": []}', "instances.png": bytes(200)}) for key in keys)
        text = write_tar((key, {"text.npy": array}) for key in keys)
        (samples,), _ = build_shard(ingested, bound, {"text": text}, settings)
        row = store_shard(store, "shard", f"{first}", "f", tar_pieces(samples), len(samples))
        store.delete(row.object_key)
    # Not getrusage's ru_maxrss: Linux hands that of the parent down to a process that it starts.
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")))


# ---- all together


def orchestration() -> dict[str, Any]:
    """`orchestration_overhead` and `noop_seconds`, by the module beside this one; nothing where it is not there."""
    if not importlib.util.find_spec("tests.benchmarks.data_orchestration"):
        return {}
    from tests.benchmarks import data_orchestration

    return dict(data_orchestration.measure_both())


def main() -> None:
    """Measure everything, print the table, write runs/bench/data.json and the dated results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=24, help="per kind of file for ingest; the others scale with it")
    parser.add_argument("--most-photos", type=int, default=100_000, help="of the larger memory measurement")
    parser.add_argument("--no-orchestration", action="store_true", help="leave out the 10,000 tiny shards")
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.join:
        join(int(options.join[0]), int(options.join[1]), Path(options.join[2]))
        return
    torch.set_num_threads(1)
    libraries = f"Pillow {Image.__version__} with libjpeg-turbo {features.version('libjpeg_turbo')}"
    numbers: dict[str, Any] = {"machine": busy_machine(), "libraries": libraries, "rounds": options.rounds}
    with tempfile.TemporaryDirectory(prefix="moa-bench-", dir=_runs()) as place:
        folder = Path(place).absolute()
        settings = load_settings("demo", folder / "workspace")
        numbers |= ingest(settings, folder, options.photos, options.rounds)
        numbers |= models(settings, folder, 6 * options.photos, options.rounds)
        numbers |= shard(folder, 40 * options.photos, options.rounds)
        sizes = sorted({min(1000, options.most_photos), options.most_photos})
        console.print(f"memory: {' and '.join(f'{size:,}' for size in sizes)} photos")
        numbers["memory_mib"] = {str(size): memory(folder, size) for size in sizes}
    if not options.no_orchestration:
        numbers |= orchestration()
    numbers |= {"ffhq": ffhq(numbers), "date": date.today().isoformat()}
    table = table_of(numbers)
    console.print(table, markup=False)
    out = _runs() / "data.json"
    out.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    results = Path(__file__).parent / "results" / f"{numbers['date']}-data.md"
    results.write_text(table, "utf-8")
    console.print(f"{out}\n{results}")


def _runs() -> Path:
    folder = Path("runs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
