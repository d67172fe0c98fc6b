"""What the data benchmark's numbers come to: the table, and the time and cost of FFHQ on one 8-GPU node."""

from typing import Any

import torch

FFHQ = 70_000
# Pictures a second of one 80 GB Hopper GPU in half precision. Assumptions, not measurements: no GPU was at hand.
ASSUMED = {
    "BLIP-2 OPT-6.7b, 5 beams": 8.0,
    "Mask2Former Swin-L": 12.0,
    "VAE, text and CLIP towers": 60.0,
}
GPUS, GPU_NODE_CORES, NODE_DOLLARS_AN_HOUR = 8, 96, 24.0
FFHQ_BYTES, READ_BYTES_A_SECOND = 89.1e9, 1e9  # images1024x1024; a local disk or a good S3 connection


def ffhq(numbers: dict[str, Any]) -> dict[str, Any]:
    """Hours and dollars for 70,000 photos on one node of 8 GPUs; GPU speeds and the price are assumptions."""
    computing = FFHQ * numbers["ingest_png_ms"] / 1000 / GPU_NODE_CORES / 3600
    reading = FFHQ_BYTES / READ_BYTES_A_SECOND / 3600
    hours = {"ingest, " + ("read" if reading > computing else "computed"): max(reading, computing)}
    for name, ratio in (
        ("BLIP-2 OPT-6.7b, 5 beams", "caption_ratio"),
        ("Mask2Former Swin-L", "segment_ratio"),
        ("VAE, text and CLIP towers", None),
    ):
        hours[name] = FFHQ / (ASSUMED[name] * GPUS) / 3600 / (min(numbers[ratio], 1.0) if ratio else 1.0)
    total = sum(hours.values())
    return {"hours": hours, "total_hours": total, "dollars": total * NODE_DOLLARS_AN_HOUR}


def _around(numbers: dict[str, Any], stage: str) -> str:
    bare, whole, ratio = (numbers[f"{stage}_{name}"] for name in ("bare_ms", "ms", "cpu_ratio"))
    beside = whole * (1 - ratio)
    return f"a model of {bare:.1f} ms a photo, beside it {beside:.1f} ms of a core (in CPU {ratio:.2f})"


def _orchestration(numbers: dict[str, Any]) -> str:
    if "start_seconds" not in numbers:
        return "over the bare work"
    start, further = numbers["start_seconds"], numbers["further_overhead"]
    size = f"{numbers['photos_per_shard']} photos, {numbers['bare_ms']:.1f} ms of bare work a shard"
    return f"{size}: {start:.1f} s of start, then {further:+.1%} a shard"


def table_of(numbers: dict[str, Any]) -> str:
    """The numbers as Markdown, ratios first."""
    peaks, smallest = numbers["memory_mib"], numbers.get("smallest", {})
    rows = [
        ("ingest, bare loop ÷ ours", "ingest_ratio", f"{numbers['ingest_png_ms']:.0f} ms of a core per PNG, "
         f"{numbers['ingest_jpeg_ms']:.0f} per JPEG; the worse of both", "≥ 0.9"),
        ("caption, bare model ÷ ours", "caption_ratio", _around(numbers, "caption"), "≥ 0.95"),
        ("segment, bare model ÷ ours", "segment_ratio", _around(numbers, "segment"), "≥ 0.95"),
        ("the same with the demo's captioner", "caption_demo_ratio", _around(numbers, "caption_demo"), ""),
        ("the same with the demo's segmenter", "segment_demo_ratio", _around(numbers, "segment_demo"), ""),
        ("shard, tar and sync ÷ ours", "shard_ratio", f"{numbers['shard_mb_per_s']:.0f} MB/s with SHA-256; "
         f"in processor time {numbers['shard_cpu_ratio']:.2f}", "≥ 0.9"),
        ("orchestration of 10,000 shards", "orchestration_overhead", _orchestration(numbers), "≤ 0.05"),
        ("of 10,000 still smaller ones", "smallest_overhead", _orchestration(smallest), ""),
        ("second run with nothing to do (s)", "noop_seconds", "", "≤ 30"),
    ]  # fmt: skip
    if smallest:
        numbers = numbers | {"smallest_overhead": smallest["orchestration_overhead"]}
    ffhq_hours, assumed = numbers["ffhq"]["hours"], ASSUMED
    lines = [
        f"# The data plane's speed, {numbers['date']}",
        "",
        f"{numbers['machine']}; {numbers['libraries']},",
        f"torch {torch.__version__}. {numbers['rounds']} rounds, bare and ours in turn, one thread of torch. Ingest:",
        "median of processor time; caption and segment: median by the clock; shards: by the clock, the best of each.",
        "Caption and segment: models of the production classes that take about as long for a photo of 512 pixels as",
        "production's on a GPU (below), and the demo's tiny ones, beside whose few milliseconds all else is large.",
        "Again: `make bench-data`.",
        "",
        "| measure | figure | from | goal |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {format(numbers[key], '.3f') if key in numbers else 'not measured'} | {source} | {goal} |"
            for name, key, source, goal in rows
        ),
        "| peak memory of joining and writing | "
        + ", ".join(f"{peak:.0f} MiB for {int(size):,} photos" for size, peak in peaks.items())
        + " | shards of 1,000 | flat |",
        "",
        "One picture's way through ingest, in milliseconds of a core: "
        + ", ".join(f"{name} {value:.1f}" for name, value in numbers["ingest_parts_ms"].items())
        + ".",
        "",
        f"## FFHQ's {FFHQ:,} photos on one node of {GPUS} GPUs",
        "",
        "Assumed, not measured, in pictures a second of one GPU: "
        + ", ".join(f"{name} {speed:g}" for name, speed in assumed.items())
        + f"; {GPU_NODE_CORES} cores",
        f"as fast as this machine's; {READ_BYTES_A_SECOND / 1e9:g} GB/s to read {FFHQ_BYTES / 1e9:g} GB; "
        f"{NODE_DOLLARS_AN_HOUR:g} dollars an hour for the node. The stages one after the other;",
        "hours = 70,000 ÷ (speed × GPUs × the ratio above) ÷ 3600; ingest's = the longer of bytes ÷ speed and",
        "70,000 × milliseconds per PNG ÷ cores.",
        "",
        *(f"- {name}: {hours:.2f} h" for name, hours in ffhq_hours.items()),
        f"- together {numbers['ffhq']['total_hours']:.2f} h, {numbers['ffhq']['dollars']:.0f} dollars",
    ]
    return "\n".join(lines) + "\n"
