"""`moa metrics`: what Prometheus learns of catalog, stages and releases. A run is too short to be asked: the store is.

The store is read on a thread every few seconds; whoever asks gets the last reading at once, however slow the store is.
Base units, `_total` on what only grows, no label with more values than a person can list: no photo, shard or run.
"""

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import polars
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.releases import measures
from flows.run import STAGES, Run
from flows.stage_log import last_runs
from infra.errors import UserError
from infra.settings import Settings

READ_SECONDS = 15.0  # Prometheus usually asks every 15 to 60
_LATEST = "newest"  # beside names such as production: the release with the highest number


def read_metrics(run: Run) -> list[Metric]:
    """All that the store says now. Raises UserError where it cannot be read."""
    return [*_catalog(run), *_stages(run), *_releases(run)]


def _catalog(run: Run) -> Iterator[Metric]:
    catalog = run.catalog
    version = catalog.version
    yield _gauge("moa_catalog_version", "Number of the catalog's last commit, -1 before the first", {(): version})
    if version < 0:
        return
    when = catalog.history()[0]["timestamp"] / 1000
    yield _gauge("moa_catalog_committed_timestamp_seconds", "When the catalog's last commit was made", {(): when})
    fingerprints = _fingerprints(run)
    counts = catalog.counts(fingerprints, version)
    refused = sum(counts.refused.values())
    text = "Photos that were ever seen, each once, by what became of them"
    yield _gauge("moa_photos", text, {("kept",): counts.kept, ("refused",): refused}, "fate")
    reasons = {(str(reason),): count for reason, count in counts.refused.items()}
    yield _gauge("moa_refused_photos", "Refused photos by the first reason on their way", reasons, "reason")
    shards = catalog.shard_frame(version=version)
    if fingerprints is not None:
        shards = shards.filter(polars.col("fingerprint").is_in(list(fingerprints.values())))
        waiting = {(stage,): len(run.pending(stage)) for stage in STAGES if stage in fingerprints and stage != "ingest"}
        yield _gauge("moa_pending_shards", "Shards that a stage has yet to do with these settings", waiting, "stage")
    done = {(stage,): shards.filter(stage=stage).height for stage in STAGES}
    yield _gauge("moa_shards", "Shards that a stage has finished with these settings", done, "stage")
    samples = int(shards.filter(stage="shard")["samples"].sum())
    yield _gauge("moa_shard_samples", "Training samples in the shard stage's shards", {(): samples})


def _stages(run: Run) -> Iterator[Metric]:
    runs = last_runs(run.store)
    ended = {(one.stage, how): count for one in runs for how, count in one.totals.items()}
    yield _counter("moa_stage_runs", "Runs of a stage by how they ended", ended, "stage", "outcome")
    gauges: dict[str, tuple[str, Callable[[Any], float]]] = {
        "last_run_timestamp_seconds": ("When the stage's last run ended", lambda one: one.ended),
        "last_finished_timestamp_seconds": ("When a run of the stage last ended well, 0 = never", lambda o: o.finished),
        "last_run_duration_seconds": ("How long the stage's last run took", lambda one: one.seconds),
    }
    for name, (text, value) in gauges.items():
        yield _gauge(f"moa_stage_{name}", text, {(one.stage,): value(one) for one in runs}, "stage")


def _releases(run: Run) -> Iterator[Metric]:
    releases = run.releases
    dates = releases.dates()
    names = {name: releases.history(name) for name in releases.names.all()}
    shown = {name: moves[-1].release.number for name, moves in names.items() if moves}
    shown |= {_LATEST: max(dates)} if dates else {}
    numbers = {(name,): number for name, number in shown.items()}
    yield _gauge("moa_release_number", "Number of the release that a name points at", numbers, "name")
    published = {(name,): dates[number] for name, number in shown.items() if number in dates}
    text = "When the release that a name points at was published"
    yield _gauge("moa_release_published_timestamp_seconds", text, published, "name")
    moved = {(name,): _seconds(moves[-1].when) for name, moves in names.items() if moves and moves[-1].when}
    yield _gauge("moa_release_moved_timestamp_seconds", "When a name was last moved", moved, "name")
    moves = {(name,): len(moves) for name, moves in names.items()}
    yield _counter("moa_release_moves", "Moves of a name, roll-backs among them", moves, "name")
    cards = {number: releases.card(releases.resolve(str(number))) for number in dates}
    verdicts = {("promote",): 0, ("keep",): 0}
    for card in cards.values():
        if "verdict" in card:
            verdicts["promote" if card["verdict"]["promote"] else "keep",] += 1
    yield _counter("moa_releases", "Releases by the gate's verdict", verdicts, "verdict")
    quality = {
        (name, measure): value["mean"]
        for name, number in shown.items()
        for measure, value in measures(cards.get(number, {})).items()
        if value["mean"] is not None
    }
    text = "Mean of a measure of the release that a name points at, in the measure's own unit"
    yield _gauge("moa_release_measure", text, quality, "name", "measure")
    checks = cards[max(dates)].get("verdict", {}).get("checks", []) if dates else []
    passed = {(check["name"],): float(check["passed"]) for check in checks}
    yield _gauge("moa_gate_check_passed", "Whether the newest release passed a check of the gate", passed, "check")


class ServiceMetrics(Collector):
    """The last reading of a store, and whether it is fresh."""

    def __init__(self, settings: Settings) -> None:
        self._run = Run(settings)
        self._metrics: list[Metric] = []
        self._reachable, self._read, self._took, self.problem = 0, 0.0, 0.0, ""

    def read(self) -> None:
        """Read the store; where that fails the last reading stays, and `problem` says why."""
        started = time.monotonic()
        try:
            self._metrics = read_metrics(self._run)
            self._reachable, self.problem = 1, ""
            self._read, self._took = time.time(), time.monotonic() - started
        except Exception as error:  # whatever a store can do wrong: the next reading may be right
            self._reachable, self.problem = 0, f"{type(error).__name__}: {' '.join(str(error).split())}"

    def collect(self) -> Iterable[Metric]:
        """prometheus_client's: every metric."""
        yield _gauge("moa_exporter_store_up", "Whether the last reading of the store came off", {(): self._reachable})
        text = "When the store was last read, 0 = never"
        yield _gauge("moa_exporter_read_timestamp_seconds", text, {(): self._read})
        yield _gauge("moa_exporter_read_duration_seconds", "How long that reading took", {(): self._took})
        yield from self._metrics


def one_reading(settings: Settings) -> str:
    """The metrics in Prometheus' text format, as a file of node_exporter's text-file collector wants them.

    Raises UserError where the store cannot be read.
    """
    service, registry = ServiceMetrics(settings), CollectorRegistry(auto_describe=False)
    service.read()
    if service.problem:
        raise UserError(f"The metrics of {settings.store_root} cannot be read ({service.problem.rstrip('.')}).")
    registry.register(service)
    return generate_latest(registry).decode()


@contextmanager
def serving(settings: Settings, address: str, port: int, seconds: float = READ_SECONDS) -> Iterator[int]:
    """Answer Prometheus on http://ADDRESS:PORT/metrics within the block, which gets the port (of 0, the one chosen).

    seconds: between two readings of the store. Raises UserError where the address cannot be listened on.
    """
    service, registry, stop = ServiceMetrics(settings), CollectorRegistry(auto_describe=False), threading.Event()
    registry.register(service)

    def reading() -> None:
        said = ""
        while True:
            service.read()
            if service.problem and service.problem != said:
                warnings.warn(f"The store cannot be read ({service.problem}): it is tried again.", stacklevel=1)
            said = service.problem
            if stop.wait(seconds):
                return

    try:
        server, thread = start_http_server(port, addr=address, registry=registry)
    except OSError as error:
        raise UserError(
            f"{address}:{port} cannot be listened on ({error.strerror}): choose another --port or --address."
        ) from error
    reader = threading.Thread(target=reading, daemon=True)
    reader.start()
    try:
        yield int(server.server_address[1])
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
        reader.join(seconds)


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def _counter(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), values)  # it adds _total


def _filled(family: Any, values: Mapping[Any, float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _fingerprints(run: Run) -> dict[str, str] | None:
    """Of the present settings; None where the models that they name are not on this machine."""
    try:
        return run.fingerprints
    except UserError:
        return None


def _seconds(when: str) -> float:
    return datetime.fromisoformat(when).timestamp()
