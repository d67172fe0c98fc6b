"""What orchestration costs over the bare work, for very many very small shards: part of `make bench-data`.

10,000 shards of 25 photos of 64 pixels are ingested, a fortieth of the presets' 1,000 photos and a thousandth of their
bytes, and as many of 7 photos, beside whose four milliseconds even Ray's start shows. `flows.ingest.read_photos` does
it: Ray, one actor, catalog, all that a run has but Prefect's page. The bare work is the same worker in a loop in this
process, on every tenth shard, taken in portions before, between and after the runs, so that a busy machine disturbs
both alike. Then a run that has nothing to do: listing all files, sweeping, and asking the catalog about four stages.

    python -m tests.benchmarks.data_orchestration [SHARDS [PHOTOS]]
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from flows.caption import caption
from flows.ingest import ingest, new_photos, read_photos
from flows.run import STAGES, Run
from flows.segment import segment
from flows.session import prepare_environment
from flows.shard import shard
from flows.workers import IngestWorker
from infra.ray_session import ray_session
from infra.settings import Settings, load_settings
from preprocessing.catalog import ShardRow, sweep
from preprocessing.sources import Record

SHARDS, PHOTOS, FEW_PHOTOS, PIXELS = 10_000, 25, 7, 64
console = Console(highlight=False)


def measure_both() -> dict[str, Any]:
    """`measure` of shards of 25 photos, and of 7 under "smallest"."""
    return measure() | {"smallest": measure(photos=FEW_PHOTOS)}


def measure(shards: int = SHARDS, photos: int = PHOTOS) -> dict[str, Any]:
    """{"orchestration_overhead": ratio - 1, "noop_seconds", and what they come from}; prints the table.

    orchestration_overhead compares wall seconds with one worker, "cpu_overhead" the CPU seconds of all processes; the
    "further" ones leave out what a run costs however short it is (the actor's start), as the difference between a run
    of all shards and one of a tenth of them.
    """
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="moa-bench-") as folder:
        source = _write_photos(Path(folder, "photos"), shards * photos)
        settings = load_settings(
            "demo",
            Path(folder, "workspace"),
            {
                "ingest.source": f"folder:{source}",
                "ingest.photos_per_shard": str(photos),
                "ingest.pixels": str(PIXELS),
                "ingest.min_side": "16",
                "ingest.workers": "1",
            },
        )
        # No face is known and none is looked for: MTCNN would be most of the work.
        records = [replace(record, faces=()) for record in new_photos(settings)]
        assert len(records) == shards * photos
        sample = [records[i : i + photos] for i in range(0, len(records), 10 * photos)]
        portions = [sample[i::4] for i in range(4)]
        bare = [_bare(settings, Path(folder, "bare"), portions[0])]
        with ray_session(settings.ray):
            few = settings.model_copy(update={"workspace": Path(folder, "few")})
            short = _orchestrated(few, records[: len(records) // 10])
            bare.append(_bare(settings, Path(folder, "bare"), portions[1]))
            run = _orchestrated(settings, records)
        bare += [_bare(settings, Path(folder, "bare"), portion) for portion in portions[2:]]
        wall, cpu = (sum(one[i] for one in bare) / len(sample) for i in (0, 1))
        more = shards - shards // 10
        thousands = _per_thousand(Run(settings), shards, photos)
        noop = _noop(settings)
    found = {
        "orchestration_overhead": run["wall"] / shards / wall - 1,
        "noop_seconds": noop,
        "cpu_overhead": run["cpu"] / shards / cpu - 1,
        "further_overhead": (run["wall"] - short["wall"]) / more / wall - 1,
        "further_cpu_overhead": (run["cpu"] - short["cpu"]) / more / cpu - 1,
        "start_seconds": short["wall"] - (run["wall"] - short["wall"]) / more * (shards // 10),
        "shards": shards,
        "photos_per_shard": photos,
        "bare_ms": 1000 * wall,
        "bare_cpu_ms": 1000 * cpu,
        "orchestrated_ms": 1000 * run["wall"] / shards,
        "orchestrated_cpu_ms": 1000 * run["cpu"] / shards,
        "driver_cpu_ms": 1000 * run["driver"] / shards,
        "driver_memory_mb": run["memory"],
        "commits": run["commits"],
        "seconds_per_thousand": thousands,
    }
    _print(found)
    return found


def _write_photos(folder: Path, count: int) -> Path:
    """Different files; the pictures are few, for a comment in the file makes it another file."""
    folder.mkdir()
    kinds = []
    for i in range(16):
        path = folder / "kind.jpg"
        Image.effect_noise((PIXELS, PIXELS), 40 + 5 * i).convert("RGB").save(path, quality=90)
        kinds.append(path.read_bytes())
        path.unlink()
    for i in range(count):
        if i % 1000 == 0:
            (folder / f"{i // 1000:04}").mkdir()
        data = kinds[i % len(kinds)]
        (folder / f"{i // 1000:04}" / f"{i:07}.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x0a%08d" % i + data[2:])
    return folder


def _bare(settings: Settings, workspace: Path, chunks: Sequence[list[Record]]) -> tuple[float, float]:
    """Wall and CPU seconds of the same work in a loop."""
    run = Run(settings.model_copy(update={"workspace": workspace}))
    worker = IngestWorker(run.store, settings.ingest, "f" * 16, frozenset())
    wall, cpu = time.perf_counter(), time.process_time()
    for i, chunk in enumerate(chunks):
        assert len(worker({"index": i, "records": chunk})["keys"]) == len(chunk)
    return time.perf_counter() - wall, time.process_time() - cpu


def _orchestrated(settings: Settings, records: list[Record]) -> dict[str, Any]:
    _ = Run(settings).fingerprints  # the models' files are hashed once per process, whatever the number of shards
    wall, cpu, driver = time.perf_counter(), _cpu_seconds(), time.process_time()
    assert read_photos(settings, records).count == 0
    run = Run(settings)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": _cpu_seconds() - cpu,
        "driver": time.process_time() - driver,
        "memory": psutil.Process().memory_info().rss / 1e6,
        "commits": run.catalog.version + 1,
    }


def _cpu_seconds() -> float:
    """Of this process, Ray's and the actors', those that have ended included."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
        if process.pid != os.getpid():
            total += times.children_user + times.children_system
    return total


def _per_thousand(run: Run, shards: int, photos: int) -> dict[str, float]:
    """Seconds for the thousand shards that end at 1,000, 5,000 and 10,000, by the times of the catalog's versions."""
    points, rows = [], 0
    for entry in sorted(run.catalog.history(), key=lambda entry: entry["version"]):
        rows += (entry.get("operationMetrics") or {}).get("num_added_rows") or 0
        points.append((rows / (photos + 1), entry["timestamp"] / 1000))

    def reached(count: float) -> float:
        for (shards0, time0), (shards1, time1) in zip(points, points[1:], strict=False):
            if shards0 <= count <= shards1 and shards1 > shards0:
                return time0 + (time1 - time0) * (count - shards0) / (shards1 - shards0)
        return points[0][1] if count <= points[0][0] else points[-1][1]

    ends = [end for end in (2000, 5000, 10_000) if end <= shards]
    return {f"{end - 1000}-{end}": reached(end) - reached(end - 1000) for end in ends}


def _noop(settings: Settings) -> float:
    """Seconds of a run that finds all four stages done, after the models' files were hashed."""
    run = Run(settings)
    for stage in (name for name in STAGES[1:] if name in run.fingerprints):  # as if done: none of the files is read
        done = [
            ShardRow(stage, row.shard, run.fingerprints[stage], row.object_key, row.sha256, row.samples, row.source)
            for row in run.shards("ingest")
        ]
        run.catalog.commit(done)
    started, again = time.perf_counter(), Run(settings)
    assert sweep(again.store, again.catalog, STAGES) == []
    for stage_flow in (ingest, caption, segment, shard):
        assert stage_flow.fn(settings).done == 0
    assert again.settled() is None and again.inputs_digest(again.training_shards())
    return time.perf_counter() - started


def _print(found: dict[str, Any]) -> None:
    table = Table(
        title=f"{found['shards']:,} shards of {found['photos_per_shard']} photos, one worker", title_justify="left"
    )
    table.add_column("")
    for name in ("wall ms per shard", "CPU ms per shard"):
        table.add_column(name, justify="right")
    table.add_row("bare work in a loop", f"{found['bare_ms']:.2f}", f"{found['bare_cpu_ms']:.2f}")
    table.add_row("orchestrated", f"{found['orchestrated_ms']:.2f}", f"{found['orchestrated_cpu_ms']:.2f}")
    table.add_row("overhead", f"{found['orchestration_overhead']:+.1%}", f"{found['cpu_overhead']:+.1%}")
    table.add_row("each further shard", f"{found['further_overhead']:+.1%}", f"{found['further_cpu_overhead']:+.1%}")
    table.add_row("of it the driver", "", f"{found['driver_cpu_ms']:.2f}")
    console.print(table)
    for span, seconds in found["seconds_per_thousand"].items():
        console.print(f"shards {span}: {seconds:.1f} s")
    console.print(f"before the first shard: {found['start_seconds']:.1f} s")
    console.print(f"{found['commits']} commits; driver {found['driver_memory_mb']:.0f} MB")
    console.print(f"a run with nothing to do: {found['noop_seconds']:.2f} s")


if __name__ == "__main__":
    measure(*map(int, sys.argv[1:]))
