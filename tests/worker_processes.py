"""Several workers of one training on this machine, as Ray Train starts them: processes in a gloo group."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import torch
from torch import distributed, multiprocessing

import moa_model.parallel  # noqa: F401  # the server from which processes are forked has imported it all


def in_workers(workers: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What work(rank, workers, *arguments) gives in each of them, as JSON has it; an error in one is this one's."""
    # From a process that has imported all and done nothing: an import takes longer than what is tested.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory(prefix="moa-workers-") as folder:
        multiprocessing.start_processes(
            _enter, (workers, folder, work, arguments), nprocs=workers, start_method="forkserver"
        )
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]


def _enter(rank: int, workers: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    Path(folder, f"{rank}.json").write_text(json.dumps(work(rank, workers, *arguments)))
    distributed.barrier()
    distributed.destroy_process_group()
