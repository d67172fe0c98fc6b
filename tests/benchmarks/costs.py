"""What a piece of work costs; pieces of work measured turn and turn about: a busy machine disturbs all alike."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

console = Console()


@dataclass(frozen=True)
class Cost:
    """Processor seconds of this process, its threads and its ended children, and seconds by the clock."""

    cpu: float
    wall: float


def cost_of(work: Callable[[], object]) -> Cost:
    """Do the work and say what it cost."""

    def spent() -> float:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    cpu, wall = spent(), time.perf_counter()
    work()
    return Cost(spent() - cpu, time.perf_counter() - wall)


def in_turn(rounds: int, **works: Callable[[], object]) -> dict[str, list[Cost]]:
    """Each work once to warm up, then in turn."""
    for work in works.values():
        work()
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for turn in range(rounds):
        for name, work in works.items():
            costs[name].append(cost_of(work))
        console.print(
            f"  {turn + 1}: " + "  ".join(f"{n} {c[-1].cpu:.2f} s ({c[-1].wall:.2f})" for n, c in costs.items())
        )
    return costs


def cpu_ratio(costs: dict[str, list[Cost]], bare: str, ours: str) -> float:
    """Median over the rounds of bare ÷ ours in processor time."""
    return statistics.median(b.cpu / o.cpu for b, o in zip(costs[bare], costs[ours], strict=True))


def wall_ratio(costs: dict[str, list[Cost]], bare: str, ours: str) -> float:
    """Median over the rounds of bare ÷ ours by the clock."""
    return statistics.median(b.wall / o.wall for b, o in zip(costs[bare], costs[ours], strict=True))
