"""What an evaluation costs over the drawing itself: the demo's, with the release that the zoo ships, in one process.

The clock runs in the pipeline's own calls, and around all of it: cutting people out of photos, PNGs, the store, looking
for people, CLIP, identities, the table. Both in one run, so a busy machine disturbs both alike. Loading the models and
starting Ray are left out: they are the same for three pictures and for thousands.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import infra.torchvision_ops  # noqa: F401

from diffusers import StableDiffusionPipeline

from flows import evaluation_pictures, evaluation_scores
from flows.contenders import AdapterModel
from flows.evaluation_people import read_people
from flows.evaluation_pictures import draw_evaluation
from flows.evaluation_scores import measure, read_metrics
from flows.run import Run
from flows.train import adapter_of
from flows.world import prepare_world
from infra.settings import load_settings


class _Clock:
    def __init__(self) -> None:
        self.pipeline = self.loading = 0.0

    def in_this_process(
        self, worker_class: Any, items: Sequence[Any], _: int, arguments: Sequence[Any], **__: Any
    ) -> Iterator[Any]:
        """`map_shards` with one worker, here."""
        started = time.perf_counter()
        worker = worker_class(*arguments)
        self.loading += time.perf_counter() - started
        yield from map(worker, items)

    def timed(self, call: Any) -> Any:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.pipeline += time.perf_counter() - started

        return timed


def measure_overhead(folder: Path, subjects: int) -> dict[str, Any]:
    """{"evaluation_overhead": all but the pipeline's own seconds ÷ these, and of what it is made}."""
    changes = {"evaluate.subjects": str(subjects), "evaluate.pairs": str(subjects // 2)}
    run = Run(load_settings("demo", folder, {**changes, "ingest.source": f"folder:{folder}"}))
    prepare_world(run.settings)
    people, adapter = read_people(run), adapter_of(run, "zoo:release-1")
    assert adapter is not None
    clock, place = _Clock(), "evaluation"
    with (
        patch.object(evaluation_pictures, "map_shards", clock.in_this_process),
        patch.object(evaluation_scores, "map_shards", clock.in_this_process),
        patch.object(StableDiffusionPipeline, "__call__", clock.timed(StableDiffusionPipeline.__call__)),
    ):
        started = time.perf_counter()
        draw_evaluation(run, AdapterModel(adapter), people, place)
        drawn = time.perf_counter() - started - clock.loading
        started, before = time.perf_counter(), clock.loading
        measure(run, people, place)
        measured = time.perf_counter() - started - (clock.loading - before)
    metrics = read_metrics(run, place)
    own = clock.pipeline
    return {
        "evaluation_overhead": (drawn + measured - own) / own,
        "evaluation_pictures": metrics["pictures"] + metrics["pair_pictures"],
        "evaluation_seconds": {"pipeline": own, "drawing beside it": drawn - own, "measuring": measured},
    }
