"""What an engineer sees of a training: curves in TensorBoard, Prometheus' metrics, the latest row on the run's page.

All of it is fed with rows of plain numbers, ``moa_model.step_metrics.StepMetrics.as_row()``: the step, and a value
by tag. Rank 0 writes the curves, the driver shows the rest, for which it loads no torch.
"""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows import artifacts
from infra.errors import UserError
from infra.storage import ObjectStore

Row = Mapping[str, float]

# Tag -> name after "moa_training_" and what it is, with Prometheus' units; tags by group become one name with a label.
_GAUGES = {
    "step": ("step", "Steps done, from the first one of the training on"),
    "optimizer/gradient_norm": ("gradient_norm", "Norm of the gradient before clipping"),
    "optimizer/learning_rate": ("learning_rate", "Learning rate of the experts"),
    "speed/images_per_second": ("images_per_second", "Training samples per second, of all workers together"),
    "speed/mfu": ("mfu_ratio", "Model FLOP/s over the devices' peak; absent where that is unknown"),
    "speed/data_wait": ("data_wait_ratio", "Share of the time in which the workers waited for data"),
    "memory/peak_bytes": ("memory_bytes", "Most memory that rank 0 had so far: of its GPU, else of its process"),
}
_GROUPS = {
    "loss": ("loss", "loss", "Mean loss over the steps of a row"),
    "router": ("router_share", "layer", "Mean weight of the personalization expert, by attention layer"),
}


class EventFiles:
    """A training's curves in the object store, as TensorBoard's event files under one prefix.

    Each file holds the rows since the one before, is written whole or not at all and never changed: viewers can follow
    it, and a kill harms nothing. Rows wait here until they are a twentieth of what is written (so the files stay few),
    or until ``publish``: call it before each checkpoint, and a resumed run's curve has no gap.
    """

    def __init__(self, store: ObjectStore, prefix: str, continued: int = 0, seconds: float = 30.0) -> None:
        """``continued``: the step after which this attempt goes on. What earlier ones wrote of later steps is hidden.

        ``seconds`` that pass at least between two files that nobody asked for.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._store, self._prefix, self._seconds = store, prefix.rstrip("/"), seconds
        self._writer = SummaryWriter
        self._purge: int | None = continued + 1
        self._number = len(store.list(f"{self._prefix}/"))
        self._rows: list[tuple[float, dict[str, float]]] = []
        self._written, self._told = 0, time.monotonic()

    def add(self, row: Row) -> None:
        """One more row; its scalars must have a step that is larger than the row's before."""
        self._rows.append((time.time(), dict(row)))
        if len(self._rows) * 20 >= self._written and time.monotonic() - self._told >= self._seconds:
            self.publish()

    def publish(self) -> None:
        """Write the rows that wait into a file of their own; nothing happens where there are none."""
        if not self._rows:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        with tempfile.TemporaryDirectory(prefix="moa-events-") as folder:
            # TensorBoard drops what it read before of this and all later steps, when a file's first event asks for it.
            with self._writer(folder, purge_step=self._purge) as writer:
                for seconds, row in self._rows:  # one event each: one a scalar takes 35 times as long
                    values = [Summary.Value(tag=tag, simple_value=row[tag]) for tag in row if tag != "step"]
                    writer.file_writer.add_summary(Summary(value=values), int(row["step"]), seconds)
            (file,) = Path(folder).iterdir()
            contents = file.read_bytes()
        # Files are read in the order of their names. Another attempt that is not quite dead yet may take a number.
        while not self._store.create(f"{self._prefix}/events.out.tfevents.{self._number:010d}", contents):
            self._number += 1
        self._written, self._told = self._written + len(self._rows), time.monotonic()
        self._rows, self._purge, self._number = [], None, self._number + 1


class MetricsServer:
    """The latest row for Prometheus, over HTTP on /metrics. Use as a context manager; port 0: nobody is answered."""

    def __init__(self, port: int, run_id: str, continued: int = 0) -> None:
        """``continued``: the step after which this process goes on; the steps before it are not counted again."""
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self.port, self._run_id, self._step = port, run_id, continued
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(f"moa_training_{name}", text, ("run", *labels), registry=registry)

        self._gauges = {tag: gauge(name, text) for tag, (name, text) in _GAUGES.items()}
        self._groups = {group: gauge(name, text, label) for group, (name, label, text) in _GROUPS.items()}
        self._told = gauge("updated_timestamp_seconds", "When the latest row came, in seconds since 1970")
        self._steps = Counter("moa_training_steps", "Steps done by this process", ("run",), registry=registry)
        self._server: Any = None

    def __enter__(self) -> "MetricsServer":
        """Raises UserError where the port is taken."""
        if self.port:
            from prometheus_client import start_http_server

            try:
                self._server, self._thread = start_http_server(self.port, registry=self._registry)
            except OSError as error:
                raise UserError(
                    f"Port {self.port} cannot be listened on ({error.strerror}): set monitoring.prometheus_port to a "
                    "free one, or to 0 for none."
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def show(self, row: Row) -> None:
        """From now on this row is answered."""
        for tag, value in row.items():
            group, _, name = tag.partition("/")
            if group in self._groups:
                self._groups[group].labels(self._run_id, name).set(value)
            elif tag in self._gauges:
                self._gauges[tag].labels(self._run_id).set(value)
        self._told.labels(self._run_id).set_to_current_time()
        # After a worker's death the steps since the checkpoint come again.
        self._steps.labels(self._run_id).inc(max(0, int(row["step"]) - self._step))
        self._step = int(row["step"])


class LiveMetrics:
    """A running training as the driver shows it: bar and progress, the latest row as a table, Prometheus' numbers."""

    def __init__(self, run_id: str, steps: int, continued: int = 0, port: int = 0, seconds: float = 10.0) -> None:
        """``steps`` of the whole training; ``continued``, ``port``: the server's; ``seconds``: as in ``Track``."""
        self._steps, self._continued, self._last = steps, continued, ""
        self._track = artifacts.Track("train: steps", steps, seconds)
        self._table = artifacts.LiveTable("train: now", f"The latest steps of training {run_id}", seconds)
        self._server = MetricsServer(port, run_id, continued)
        self._stack = ExitStack()

    def __enter__(self) -> "LiveMetrics":
        with ExitStack() as opened:
            for part in (self._server, self._track, self._table):
                opened.enter_context(part)
            self._stack = opened.pop_all()
        self._track.to(self._continued, "train: workers start")
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def show(self, row: Row | None) -> None:
        """The latest row; one that was shown already, or none, changes nothing."""
        if row is None or repr(dict(row)) == self._last:  # as text: a loss that is not a number equals itself there
            return
        self._last = repr(dict(row))
        speed = f", {row['speed/images_per_second']:.3g} images/s" if "speed/images_per_second" in row else ""
        self._track.to(row["step"], f"train: loss {row['loss/total']:.4f}{speed}")
        self._table.show([{"metric": tag, "value": f"{value:.6g}"} for tag, value in row.items()])
        self._server.show(row)

    def finished(self) -> None:
        """All steps are done."""
        self._track.to(self._steps)
