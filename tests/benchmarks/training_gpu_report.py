"""What `tests.benchmarks.training_gpu` measured, as Markdown: the table, and where the best setting's time goes."""

import re
from collections.abc import Iterable
from typing import Any

GOAL, BEYOND = 180.0, 250.0  # images/s of one GPU: what is asked, and what would be asked next
PUBLIC = "128.5 images/s per H200 at 31 % MFU (MLPerf, Stable Diffusion 2's plain U-Net)"
FORWARD = 0.803e12  # FLOPs of Stable Diffusion 1.5's forward pass at 512 pixels, as counted by hand

ELEMENTWISE, OPTIMIZER = "elementwise + norm", "optimizer"
# The first that matches a kernel's name (on a CPU: an operator's), else elementwise + norm. The compiler's own kernels
# are named after all that they came from, convolutions too, though they only add, normalise and convert.
_PARTS = (
    (ELEMENTWISE, r"^triton_(poi|per|red|for|split_scan|mix_order)"),
    ("attention", r"flash|fmha|sdpa|attention|_mha_|softmax|aten::bmm"),
    (OPTIMIZER, r"multi_tensor_apply|adam|_foreach_|lpnorm|linalg_vector_norm"),
    ("convolution", r"conv(?!ert)|fprop|dgrad|wgrad|implicit_gemm|winograd"),
    ("matmul", r"gemm|nvjet|cublas|cutlass|matmul|triton_tem|splitk|aten::(add)?mm\b"),
    ("layout + copies", r"nchwtonhwc|nhwctonchw|memcpy|memset|copy|transpose|convert_tensor"),
)
PARTS = tuple(dict.fromkeys(part for part, _ in (*_PARTS[1:], _PARTS[0])))
_ANNOTATIONS = ("ProfilerStep", "Torch-Compiled Region", "## Call", "Optimizer.", "TorchDynamo")


def part_of(name: str) -> str:
    """The part of the work that a kernel of this name belongs to; a guess by its name."""
    lower = name.lower()
    return next((part for part, pattern in _PARTS if re.search(pattern, lower)), ELEMENTWISE)


def breakdown(events: Iterable[Any], cuda: bool, steps: int) -> dict[str, Any]:
    """Milliseconds per step by part, those in which the device did nothing, and the kernels that take longest.

    ``events`` are torch.profiler's: on a GPU its kernels (the annotations around them left out), on a CPU the operators
    with the time that is their own.
    """
    parts, kernels = dict.fromkeys(PARTS, 0.0), {}
    spans: list[tuple[float, float]] = []
    for event in events:
        if cuda:
            annotation = event.is_user_annotation or event.name.startswith(_ANNOTATIONS)
            if annotation or not str(event.device_type).endswith("CUDA"):
                continue
            spent = event.time_range.end - event.time_range.start
        else:
            spent = event.self_cpu_time_total
        spans.append((event.time_range.start, event.time_range.end))
        parts[part_of(event.name)] += spent
        kernels[event.name] = kernels.get(event.name, 0.0) + spent
    if not spans:
        return {}
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    top = sorted(kernels.items(), key=lambda item: -item[1])[:15]
    return {
        "milliseconds": whole / 1e3 / steps,
        "parts": {part: spent / 1e3 / steps for part, spent in parts.items()},
        "idle": (whole - _covered(spans)) / 1e3 / steps,
        "top": [{"name": name, "milliseconds": spent / 1e3 / steps, "part": part_of(name)} for name, spent in top],
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def report(numbers: dict[str, Any]) -> str:
    """All of it as Markdown."""
    about, flops, rows = numbers["about"], numbers["flops"], list(numbers["rows"].values())
    moa, full = (sum(flops[kind].values()) for kind in ("moa", "full"))
    lines = [
        f"# Training on a GPU, {about['date']}",
        "",
        f"{about['machine']}, torch {about['torch']}, commit {about['commit']}. {about['sizes']}, random weights, bf16",
        f"autocast, synthetic samples on the device. Medians of {about['rounds']} rounds of {about['steps']} steps, in",
        "turn with diffusers' recipe, which stays in memory; peak memory is each one's own. Both with cudnn.benchmark,",
        "noise drawn on the device and clipped gradients; MoA's step also averages its weights (EMA).",
        "Again: `python -m tests.benchmarks.training_gpu`.",
        "",
        f"FLOPs of one picture, counted: plain forward {flops['forward'] / 1e12:.4g} TFLOP{_as_expected(numbers)}, "
        f"a step of full fine-tuning {full / 1e12:.4g}, of MoA {moa / 1e12:.4g}",
        f"(what is computed again does not count). MFU is of {numbers['peak_tflops']:.4g} TFLOP/s "
        f"({numbers['peak_from']}); a large bf16 product reaches {numbers['matmul_tflops']:.4g} here.",
        f"Best public figure: {PUBLIC}; goal {GOAL:g}.",
        "",
        "| batch | setting | images/s | MFU | ms a step | × the recipe in turn | peak GiB | first step (s) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, rows),
    ]
    measured = [row for row in rows if row["kind"] == "moa" and "images_per_second" in row]
    if measured:
        best = max(measured, key=lambda row: row["images_per_second"])
        lines += _where_it_goes(numbers, best)
    return "\n".join(lines) + "\n"


def _as_expected(numbers: dict[str, Any]) -> str:
    if numbers["about"]["sizes"] != "Stable Diffusion 1.5":
        return ""
    agrees = abs(numbers["flops"]["forward"] / FORWARD - 1) < 0.01
    return f" ({'as' if agrees else 'NOT as'} by hand: {FORWARD / 1e12:.3f})"


def _row(row: dict[str, Any]) -> str:
    title = f"MoA: {row['title']}" if row["kind"] == "moa" else row["title"]
    if "images_per_second" not in row:
        return f"| {row['batch']} | {title} | {row.get('failed', 'not measured').replace('|', '/')} | | | | | |"
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
    return (
        f"| {row['batch']} | {title} | {row['images_per_second']:.1f} | {row['mfu']:.1%} | "
        f"{1000 * row['batch'] / row['images_per_second']:.1f} | {ratio} | {row['peak_gib']:.1f} | "
        f"{row['first_step_seconds']:.0f} |"
    )


def _where_it_goes(numbers: dict[str, Any], best: dict[str, Any]) -> list[str]:
    """The best setting's step, part by part: its share, its rate, and what would be reached if it cost nothing."""
    found, batch = best.get("breakdown"), best["batch"]
    lines = ["", f"## Where the time goes: {best['title']}, batch {batch}", ""]
    if not found:
        return [*lines, "The profiler saw no kernels."]
    whole, flops = found["milliseconds"], numbers["flops"][best["kind"]]
    lines += [
        f"{whole:.1f} ms a step under the profiler; {BEYOND:g} images/s would leave {1000 * batch / BEYOND:.1f} ms.",
        "Parts are told by the names of the kernels: a guess where the compiler fuses. The last column is the speed if",
        "the part took no time at all.",
        "",
        "| part | ms | share | TFLOP/s reached | images/s without it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part, spent in [*found["parts"].items(), ("idle GPU", found["idle"])]:
        rate = f"{batch * flops[part] / spent / 1e9:.1f}" if flops.get(part) and spent else ""
        without = f"{1000 * batch / (whole - spent):.1f}" if whole > spent else ""
        lines.append(f"| {part} | {spent:.2f} | {spent / whole:.1%} | {rate} | {without} |")
    ceiling = 1e12 * numbers["matmul_tflops"] / sum(flops.values())
    lines += ["", _verdict(best, found, flops, numbers["matmul_tflops"]), ""]
    lines += [f"At a large product's rate throughout it would be {ceiling:.4g} images/s.", ""]
    lines += ["| kernel | part | ms a step | share |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{one['name'][:90].replace('|', '/')}` | {one['part']} | {one['milliseconds']:.2f} | "
        f"{one['milliseconds'] / whole:.1%} |"
        for one in found["top"]
    ]
    return lines


def _verdict(best: dict[str, Any], found: dict[str, Any], flops: dict[str, float], matmul_tflops: float) -> str:
    """What holds the best setting back from BEYOND: the milliseconds that each part loses, the largest first."""
    over = found["milliseconds"] - 1000 * best["batch"] / BEYOND
    lost = {
        part: spent - best["batch"] * flops.get(part, 0.0) / matmul_tflops / 1e9
        for part, spent in [*found["parts"].items(), ("idle GPU", found["idle"])]
    }
    largest = sorted(lost.items(), key=lambda item: -item[1])[:3]
    named = ", ".join(f"{part} {milliseconds:.1f} ms" for part, milliseconds in largest)
    reached = "is past" if over <= 0 else f"is {over:.1f} ms a step away from"
    return (
        f"This setting {reached} {BEYOND:g} images/s. Lost against a large product's rate, the largest first: {named}."
    )
