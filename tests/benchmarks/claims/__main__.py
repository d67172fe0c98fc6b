"""`python -m tests.benchmarks.claims`: train what is missing, draw what is missing, write the report.

It can be stopped at any time; the same command goes on. A longer training continues the shorter one.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch

from tests.benchmarks.claims.drawing import Gallery
from tests.benchmarks.claims.plan import LENGTHS, SEEDS, Drawn, todo
from tests.benchmarks.claims.working import work_through
from tests.benchmarks.claims.world import World

ROOT = Path(__file__).parents[3]


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.claims", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="where results on the way lie")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread, each on its own arms")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="training seeds, most urgent first")
    parser.add_argument("--length", type=int, choices=LENGTHS, default=LENGTHS[-1], help="steps of the table")
    parser.add_argument("--no-search", action="store_true", help="leave out the search for the best setting")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so long")
    parser.add_argument("--report", action="store_true", help="only write the report from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    World.at(options.work)  # makes the shards, once, before the workers look for them
    if not options.report:
        items = todo(tuple(options.seeds), options.length, not options.no_search)
        deadline = time.monotonic() + options.minutes * 60
        _in_processes(options.work, items, options.workers, deadline)
    from tests.benchmarks.claims.report import write_report

    for path in write_report(Gallery(World.at(options.work), options.work), tuple(options.seeds), ROOT / "evaluation"):
        print(path)


def _in_processes(work: Path, items: Sequence[Drawn], workers: int, deadline: float) -> None:
    """Every worker walks the list and takes what nobody holds."""
    if workers <= 1:
        work_through(work, items, deadline)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (work, items, deadline, os.getpid())
    processes = [context.Process(target=work_through, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise SystemExit(f"A worker ended with code {failed[0]}: run the same command again; nothing done is lost.")


if __name__ == "__main__":
    main()
