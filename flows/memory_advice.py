"""Whether a training fits into its GPUs' memory, and if it does not, which settings would make it fit."""

from typing import TYPE_CHECKING, Literal

from flows.quantities import in_bytes
from flows.training_cluster import fewest_workers
from infra.settings import TrainSettings

if TYPE_CHECKING:
    from flows.training_plan import Assumptions
    from moa_model.training_cost import TrainingCost


def fits(cost: "TrainingCost", asked: TrainSettings, assumed: "Assumptions") -> list[str]:
    """A sentence, and another one where fewer workers, with which the training may have to go on, would not do. Each
    setting that it names mends it alone, or all together where they stand side by side."""
    return [_with_all(cost, asked, assumed), *_with_fewer(cost, asked, assumed)]


def _with_all(cost: "TrainingCost", asked: TrainSettings, assumed: "Assumptions") -> str:
    rows, most = rows_at_once(asked, asked.workers), _most(cost, assumed, asked.workers, asked.sharding)
    where = f"the {assumed.gpu}'s {in_bytes(assumed.gpu_bytes)}"
    if rows <= most:
        return f"It fits: {where} hold up to {most:,} samples a GPU, and this takes {rows:,}."
    if not most:
        mended = _in_parts(cost, asked, assumed) or "take a GPU with more memory, or a smaller base"
        return f"It does not fit: {where} do not hold a single sample: {mended}."
    # What sends less comes first.
    able = [one for one in _beyond(asked) if rows <= _most(cost, assumed, asked.workers, one)]
    parts = f", --set train.sharding={able[0]} leaves a part of the state on each" if able else ""
    more = range(asked.workers + 1, asked.batch_size + 1)
    whole = [n for n in more if asked.batch_size % n == 0]
    enough = [n for n in whole if asked.batch_size // n <= _most(cost, assumed, n, asked.sharding)]
    same = f", or --set train.workers={enough[0]} the same batch on more GPUs" if enough else ""
    return (
        f"It does not fit: {rows:,} samples a GPU are too many for {where}, which hold {most:,}: "
        f"--set train.micro_batch_size={most} takes the batch in pieces that fit{parts}{same}."
    )


def _with_fewer(cost: "TrainingCost", asked: TrainSettings, assumed: "Assumptions") -> list[str]:
    """Once machines are lost `min_workers` lets it go on, and each worker's share is larger."""
    fewer = range(fewest_workers(asked), asked.workers)
    most = {workers: _most(cost, assumed, workers, asked.sharding) for workers in fewer}
    bad = [workers for workers in fewer if rows_at_once(asked, workers) > most[workers]]
    if not bad:
        return []
    pieces = f"--set train.micro_batch_size={min(most.values())} takes the batch in pieces that fit, " * all(
        most.values()
    )
    return [
        f"With {bad[-1]} worker{'s' * (bad[-1] > 1)}, as after a loss of machines, it does not fit: "
        f"{rows_at_once(asked, bad[-1]):,} samples a GPU are too many, {most[bad[-1]]:,} would fit: {pieces}"
        f"--set train.min_workers={bad[-1] + 1} lets it end before."
    ]


def rows_at_once(asked: TrainSettings, workers: int) -> int:
    """Samples at once on each of so many workers' GPUs: the micro batch, or the largest share of a batch."""
    share = -(-asked.batch_size // workers)
    return min(asked.micro_batch_size or share, share)


def _in_parts(cost: "TrainingCost", asked: TrainSettings, assumed: "Assumptions") -> str:
    """With how few GPUs, not fewer than asked for, a sample fits where each holds a part; "" where it never does."""
    for workers in range(max(2, asked.workers), asked.batch_size + 1):
        for sharding in (asked.sharding, *_beyond(asked)):
            if most := _most(cost, assumed, workers, sharding):
                pieces = min(most, -(-asked.batch_size // workers))
                more = f" --set train.workers={workers}" if workers > asked.workers else ""
                return (
                    f"--set train.sharding={sharding}{more} --set train.micro_batch_size={pieces} leaves a part of the "
                    "state on each GPU, and takes the batch in pieces that fit"
                )
    return ""


_Sharding = Literal["none", "fsdp-trained", "fsdp"]
_SHARDINGS: tuple[_Sharding, ...] = ("none", "fsdp-trained", "fsdp")


def _beyond(asked: TrainSettings) -> tuple[_Sharding, ...]:
    """Those that leave less on each GPU. A prior is cut in single precision only."""
    able = _SHARDINGS if asked.frozen_precision == "fp32" else _SHARDINGS[:-1]
    return able[able.index(asked.sharding) + 1 :]


def _most(cost: "TrainingCost", assumed: "Assumptions", workers: int, sharding: _Sharding) -> int:
    """Samples that a GPU holds at once."""
    return cost.samples_within(assumed.gpu_bytes, workers, assumed.reserve, sharding)
