"""What an engineer sees of a training: curves in TensorBoard, Prometheus' metrics, the latest row on the run's page.

All of it is fed with rows of plain numbers, ``moa_model.step_metrics.StepMetrics.as_row()``: the step, and a value
by tag. Rank 0 writes the curves, the driver shows the rest, for which it loads no torch.
"""

import io
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from flows import artifacts
from flows.training_job import picture_key
from infra.errors import UserError
from infra.storage import ObjectStore

Row = Mapping[str, float]
_Event = tuple[float, int, list[Any]]  # seconds since 1970, step, TensorBoard's values

# Tag -> name after "moa_training_" and what it is, with Prometheus' units; tags by group become one name with a label.
_GAUGES = {
    "step": ("step", "Steps done, from the first one of the training on"),
    "optimizer/gradient_norm": ("gradient_norm", "Norm of the gradient before clipping"),
    "optimizer/learning_rate": ("learning_rate", "Learning rate of the experts"),
    "speed/images_per_second": ("images_per_second", "Training samples per second, of all workers together"),
    "speed/mfu": ("mfu_ratio", "Model FLOP/s over the devices' peak; absent where that is unknown"),
    "speed/data_wait": ("data_wait_ratio", "Share of the time in which the worker that waited longest did so for data"),
    "memory/peak_bytes": ("memory_bytes", "Most memory that a worker had so far: of its GPU, else of its process"),
}
_GROUPS = {
    "loss": ("loss", "loss", "Mean loss over the steps of a row"),
    "router": ("router_share", "layer", "Mean weight of the personalization expert, by attention layer"),
}


class EventFiles:
    """A training's curves and pictures in the object store, as TensorBoard's event files under one prefix.

    Each file holds what came since the one before, is written whole or not at all and never changed: viewers can follow
    it, and a kill harms nothing. Rows wait here until they are a twentieth of what is written (so the files stay few),
    or until ``publish``: call it before each checkpoint, and a resumed run's curve has no gap.

    All is written on a thread: neither a slow store nor one that is away holds the steps up. What cannot be written is
    told, and comes with the next. Each call gives a future that is done once it was tried.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        continued: int = 0,
        seconds: float = 30.0,
        tell: Callable[[str], object] = warnings.warn,
    ) -> None:
        """``continued``: the step after which this attempt goes on. What earlier ones wrote of later steps is hidden.

        ``seconds`` that pass at least between two files that nobody asked for.
        """
        self._store, self._prefix, self._seconds, self._tell = store, prefix.rstrip("/"), seconds, tell
        self._thread = ThreadPoolExecutor(1, "curves")
        # The rest is the thread's alone.
        self._waiting: deque[Callable[[], _Event]] = deque()
        self._events: list[_Event] = []
        self._purge: int | None = continued + 1
        self._number: int | None = None
        self._written, self._told = 0, time.monotonic()

    def add(self, row: Row) -> Future[None]:
        """One more row; its scalars must have a step that is larger than the row's before."""
        now = time.time()
        return self._thread.submit(self._work, lambda: _scalars(now, row))

    def add_picture(self, step: int, key: str, png: bytes | None) -> Future[None]:
        """Store a picture under the key and show it at the step; None shows the one that is there."""
        now = time.time()

        def stored() -> _Event:
            if png is not None:
                self._store.put(key, png)
            return _image(now, step, self._store.get(key) if png is None else png)

        return self._thread.submit(self._work, stored)

    def publish(self) -> Future[None]:
        """Write what waits into a file of its own; nothing happens where there is nothing."""
        return self._thread.submit(self._work, None, publish=True)

    def close(self) -> None:
        """Write what waits, and wait for it."""
        self.publish()
        self._thread.shutdown()

    def _work(self, event: Callable[[], _Event] | None, publish: bool = False) -> None:
        if event is not None:
            self._waiting.append(event)
        try:
            while self._waiting:
                self._events.append(self._waiting[0]())
                self._waiting.popleft()
            due = len(self._events) * 20 >= self._written and time.monotonic() - self._told >= self._seconds
            if self._events and (publish or due):
                self._publish()
        except Exception as error:
            self._tell(f"the curves could not be written ({type(error).__name__}: {error})")

    def _publish(self) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        if self._number is None:
            self._number = len(self._store.list(f"{self._prefix}/"))
        with tempfile.TemporaryDirectory(prefix="moa-events-") as folder:
            # TensorBoard drops what it read before of this and all later steps, when a file's first event asks for it.
            with SummaryWriter(folder, purge_step=self._purge) as writer:
                for seconds, step, values in self._events:  # one event each: one a scalar takes 35 times as long
                    writer.file_writer.add_summary(Summary(value=values), step, seconds)
            (file,) = Path(folder).iterdir()
            contents = file.read_bytes()
        # Files are read in the order of their names. Another attempt that is not quite dead yet may take a number.
        while not self._store.create(f"{self._prefix}/events.out.tfevents.{self._number:010d}", contents):
            self._number += 1
        self._written, self._told = self._written + len(self._events), time.monotonic()
        self._events, self._purge, self._number = [], None, self._number + 1


def _scalars(seconds: float, row: Row) -> _Event:
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items() if tag != "step"]
    return seconds, int(row["step"]), values


def _image(seconds: float, step: int, png: bytes) -> _Event:
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        size = {"width": picture.width, "height": picture.height, "colorspace": 3}
    return seconds, step, [Summary.Value(tag="pictures", image=Summary.Image(encoded_image_string=png, **size))]


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


class LivePictures:
    """A running training's grids of pictures on the run's page, each as it comes."""

    def __init__(self, store: ObjectStore, run_id: str, every: int, continued: int = 0) -> None:
        """``every``: so many steps, 0 = never; ``continued``: the step after which this process goes on."""
        self._store, self._run_id, self._every = store, run_id, every
        self._next = max(continued // every, 1) * every if every else 0  # the last one is shown on every run's page

    def look(self, step: int) -> None:
        """So many steps are done: show what is there by now. What is not is on its way, until the next one is due."""
        while self._every and self._next <= step:
            try:
                png = self._store.get(picture_key(self._run_id, self._next))
            except Exception:  # not there yet, or the store is away
                if step < self._next + self._every:
                    return
            else:
                artifacts.picture(
                    "train pictures", png, f"Step {self._next}: the priors' own, and people not trained on"
                )
            self._next += self._every
