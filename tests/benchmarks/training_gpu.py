"""How fast MoA trains on a GPU, beside full fine-tuning as diffusers does it: the GPU half of `make bench-training`.

    python -m tests.benchmarks.training_gpu [--batches 32 64] [--rounds 3] [--settings compiled graphs]

Stable Diffusion 1.5's full size, random weights, synthetic samples on the device. For each batch size diffusers' recipe
stays in memory, and each setting of MoA is measured against it, turn and turn about. What was measured is kept after
each setting: a run that was stopped is started again with the same command. `--tiny` does all of it in a minute of a
CPU.
"""

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from rich.console import Console

from moa_model.files import write_text
from moa_model.step_metrics import peak_flops
from tests.benchmarks.machine import machine
from tests.benchmarks.training_gpu_report import breakdown, report
from tests.benchmarks.training_steps import (
    FULL,
    RECIPE,
    SETTINGS,
    TINY,
    FullCase,
    MoACase,
    Samples,
    Setting,
    Sizes,
    counted,
    make_case,
    synthetic,
)

WARM_UP, STEPS, PROFILED = 3, 5, 3  # steps: before a clock runs, of a turn, in a breakdown
_NO_MEMORY = "out of memory (diffusers' recipe lies in it too)"
console = Console(stderr=True)


class Bench:
    """One device, one size of model; what was found, kept in a file after every setting."""

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device,
        rounds: int,
        file: Path,
        peak_tflops: float | None = None,
        flops: dict[str, Any] | None = None,
    ) -> None:
        """``flops`` where they are known: else they are counted. ``peak_tflops``: else the datasheet's."""
        self.sizes, self.device, self.rounds, self.file = sizes, device, rounds, file
        self.steps = STEPS if device.type == "cuda" else 1
        self.numbers = self._header(peak_tflops, flops)
        self.rows: dict[str, dict[str, Any]] = self.numbers["rows"]

    def _header(self, peak_tflops: float | None, flops: dict[str, Any] | None) -> dict[str, Any]:
        """What two runs must have in common for the second to go on where the first one stopped, and what it found."""
        cuda = self.device.type == "cuda"
        about = {
            "date": date.today().isoformat(),
            "commit": _commit(),
            "machine": torch.cuda.get_device_name(self.device) if cuda else machine(),
            "torch": torch.__version__,
            "sizes": self.sizes.title,
            "rounds": self.rounds,
            "steps": self.steps,
        }
        if self.file.exists():
            with contextlib.suppress(ValueError, KeyError):
                before = json.loads(self.file.read_text("utf-8"))
                if before["about"] == about:
                    console.print(f"{self.file} has {len(before['rows'])} rows of today: the rest is measured.")
                    return before
        rate = matmul_tflops(self.device)
        named = (peak_flops(about["machine"]) or 0.0) / 1e12
        return {
            "about": about,
            "flops": flops or counted(self.sizes),
            "matmul_tflops": rate,
            "peak_tflops": peak_tflops or named or rate,
            "peak_from": "as told" if peak_tflops else "datasheet" if named else "measured matmul",
            "rows": {},
        }

    def measure(self, batch: int, settings: list[Setting]) -> None:
        """Every setting at this batch size, diffusers' recipe beside each."""
        todo = [one for one in settings if not self._known(one, batch)]
        if not todo and self._known(RECIPE, batch):
            return
        samples = synthetic(self.sizes, batch, self.device)
        recipe, row = self._open(RECIPE, batch, samples)
        turns: list[float] = []
        if recipe is not None:
            turns += [self._turn(recipe) for _ in range(self.rounds)]
            row |= {"breakdown": self._profile(recipe)}
        self._keep(RECIPE, batch, row, turns)
        for setting in todo:
            self._against(recipe, setting, batch, samples)

    def _known(self, setting: Setting, batch: int) -> bool:
        """Measured already, or too large for this memory; another failure is tried again."""
        row = self.rows.get(f"{batch}/{setting.key}")
        return row is not None and row.get("failed", _NO_MEMORY) == _NO_MEMORY

    def _against(self, recipe: FullCase | MoACase | None, setting: Setting, batch: int, samples: Samples) -> None:
        """One setting, turn and turn about with the recipe, which stays in memory."""
        case, row = self._open(setting, batch, samples)
        mine: list[float] = []
        theirs: list[float] = []
        if case is not None:
            try:
                for _ in range(self.rounds):
                    if recipe is not None:
                        theirs.append(self._turn(recipe))
                    mine.append(self._turn(case))
                row["breakdown"] = self._profile(case)
            except Exception as error:
                mine, row = [], row | {"failed": _reason(error)}
        if mine and theirs:
            row["ratio"] = statistics.median(a / b for a, b in zip(theirs, mine, strict=True))
        self._keep(setting, batch, row, mine)
        del case
        self._tidy()

    def _open(self, setting: Setting, batch: int, samples: Samples) -> tuple[MoACase | FullCase | None, dict[str, Any]]:
        """The setting's case, warm, and its peak memory; None and the reason where it does not run here."""
        console.print(f"batch {batch}, {setting.key} …", markup=False)
        self._tidy()
        before = _allocated(self.device)
        case: MoACase | FullCase | None = None
        row: dict[str, Any] = {}
        try:
            started = time.perf_counter()
            case = make_case(setting, self.sizes, samples, self.device)
            for turn in range(WARM_UP if self.device.type == "cuda" else 1):
                loss = self._step(case)
                if not turn:
                    row["first_step_seconds"] = time.perf_counter() - started
            row["loss"] = loss.item()
            row["peak_gib"] = (_peak(self.device) - before) / 2**30
        except Exception as error:  # one setting that a machine refuses must not cost the others' rows
            row["failed"] = _reason(error)
            case = None
        return case, row

    def _step(self, case: MoACase | FullCase) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return case.step()

    def _turn(self, case: MoACase | FullCase) -> float:
        """Seconds per step of one turn."""
        self._step(case)  # the other one's turn has gone through the caches
        self._wait()
        started = time.perf_counter()
        for _ in range(self.steps):
            self._step(case)
        self._wait()
        return (time.perf_counter() - started) / self.steps

    def _profile(self, case: MoACase | FullCase) -> dict[str, Any]:
        """Where the time of a step goes, by torch.profiler."""
        cuda = self.device.type == "cuda"
        activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
        self._wait()
        with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
            for _ in range(PROFILED):
                self._step(case)
            self._wait()
        return breakdown(profiler.events(), cuda, PROFILED)

    def _keep(self, setting: Setting, batch: int, row: dict[str, Any], turns: list[float]) -> None:
        """Put a row down, in memory and on disk."""
        row = {"batch": batch, "key": setting.key, "title": setting.title, "kind": setting.kind} | row
        if turns:
            seconds = statistics.median(turns)
            flops = sum(self.numbers["flops"][setting.kind].values())
            row["turns"], row["images_per_second"] = turns, batch / seconds
            row["mfu"] = batch / seconds * flops / (self.numbers["peak_tflops"] * 1e12)
            said = f"{row['images_per_second']:.1f} images/s, MFU {row['mfu']:.1%}"
        else:
            said = row["failed"]
        console.print(f"  {said}", markup=False)
        self.rows[f"{batch}/{setting.key}"] = row
        write_text(self.file, json.dumps(self.numbers, indent=2) + "\n")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _tidy(self) -> None:
        """Nothing of the last setting stays: code, graphs' memory, peaks. The recipe is never compiled."""
        gc.collect()
        if self.device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def matmul_tflops(device: torch.device) -> float:
    """What a large bf16 product reaches here, the best of a few: a ceiling nearer than the datasheet's."""
    side, turns = (8192, 10) if device.type == "cuda" else (256, 2)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(turns):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, turns * 2 * side**3 / (time.perf_counter() - started) / 1e12)
    return best


def _reason(error: Exception) -> str:
    """Why a setting has no figure, in a line."""
    if isinstance(error, torch.OutOfMemoryError):
        return _NO_MEMORY
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:160]}"


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device) -> int:
    """A CPU's is not told apart from the rest of the process: 0."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@contextlib.contextmanager
def _quick_convolutions() -> Iterator[None]:
    """cuDNN tries its algorithms once per shape; for both sides alike."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and the breakdown, write the JSON and the dated results."""
    keys = [setting.key for setting in SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="all of it with a tiny U-Net on the CPU")
    parser.add_argument("--batches", type=int, nargs="+", help="samples per step (default: 32 64; tiny: 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=keys, default=keys, help="rows beside the recipe")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16, for MFU; by default the datasheet's")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of training_gpu.json")
    parser.add_argument("--results", type=Path, help="folder of the dated Markdown (tiny: --out)")
    parser.add_argument("--afresh", action="store_true", help="measure again what was measured today")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("There is no GPU here: run it on a machine with one, or see it run with --tiny.", file=sys.stderr)
        raise SystemExit(2)
    device = torch.device("cpu" if options.tiny else "cuda")
    folder = options.results or (options.out if options.tiny else Path(__file__).parent / "results")
    for each in (options.out, folder):
        each.mkdir(parents=True, exist_ok=True)
    file = options.out / f"training_gpu{'_tiny' if options.tiny else ''}.json"
    if options.afresh:
        file.unlink(missing_ok=True)
    bench = Bench(TINY if options.tiny else FULL, device, options.rounds, file, options.peak_tflops)
    with _quick_convolutions():
        for batch in options.batches or ([2] if options.tiny else [32, 64]):
            bench.measure(batch, [setting for setting in SETTINGS if setting.key in options.settings])
    text = report(bench.numbers)
    print(text)
    dated = folder / f"{bench.numbers['about']['date']}-training-{'tiny' if options.tiny else 'gpu'}.md"
    write_text(dated, text)
    console.print(f"{file}\n{dated}", markup=False)


if __name__ == "__main__":
    main()
