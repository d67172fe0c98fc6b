"""What an operator sees on a run's page, and the same progress in the terminal."""

import base64
import io
import json
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False)
_Item = TypeVar("_Item")
_LOGGED = 100  # refused photos of a stage in a run's log; the table has more, the catalog all


class _Bars:
    """The terminal's bars: one display for all that run at the same time, for a terminal has room for one."""

    def __init__(self) -> None:
        self._lock, self._open = threading.Lock(), 0
        self._progress: Any = None

    def add(self, title: str, total: float) -> tuple[Progress, Any]:
        with self._lock:
            if not self._open:
                columns = (TextColumn("  {task.description:<34}"), BarColumn(24), MofNCompleteColumn())
                self._progress = Progress(*columns, TimeElapsedColumn(), console=console)
                self._progress.start()
            self._open += 1
            return self._progress, self._progress.add_task(title, total=total)

    def leave(self) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self._progress.stop()


_bars = _Bars()


class Board(Protocol):
    """Where a job on a cluster keeps what it would show: `flows/job_page.py`."""

    def open_bar(self, title: str, total: float) -> dict[str, Any]: ...
    def open_table(self, key: str, description: str) -> dict[str, Any]: ...
    def close(self, part: dict[str, Any]) -> None: ...
    def put(self, kind: str, content: dict[str, Any]) -> None: ...


_board: Board | None = None  # None: in the terminal and on the run's page


@contextmanager
def shown_on(board: Board) -> Iterator[None]:
    """Within the block all that this process shows goes to `board`; what it prints does not."""
    global _board
    _board = board
    try:
        yield
    finally:
        _board = None


class Track:
    """A bar in the terminal and a progress artifact on the run's page. Use as a context manager."""

    def __init__(self, title: str, total: float, seconds: float = 10.0) -> None:
        """``seconds`` after which the page is told again of what takes long."""
        self.title, self.total, self.done = title, total, 0.0
        self._says, self._shown = title, -1.0
        self._seconds, self._told = seconds, time.monotonic()
        self._artifact: Any = None
        self._on_board: dict[str, Any] | None = None

    def __enter__(self) -> "Track":
        if _board is not None:
            self._on_board = _board.open_bar(self.title, self.total)
            return self
        self._bar, self._task = _bars.add(self.title, self.total)
        self._artifact = _in_run() and _create_progress(self.title)
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_board is not None and _board is not None:
            _board.close(self._on_board)
            return
        self._tell()
        _bars.leave()

    def to(self, done: float, title: str = "") -> None:
        """Set how much is done."""
        self.done, self._says = done, title or self.title
        if self._on_board is not None:
            self._on_board.update(done=self.done, says=self._says)
            return
        self._bar.update(self._task, completed=done, description=self._says)
        # The page is told in steps of a twentieth, or of some seconds: a call takes longer than a training step.
        if done - self._shown >= self.total / 20 or time.monotonic() - self._told >= self._seconds:
            self._tell()

    def advance(self) -> None:
        """One more is done."""
        self.to(self.done + 1)

    def _tell(self) -> None:
        if self._artifact and self.done != self._shown:
            from prefect.artifacts import update_progress_artifact

            share = min(100.0, 100 * self.done / max(self.total, 1))
            with _page_may_be_away():
                update_progress_artifact(self._artifact, progress=share, description=self._says)
            self._shown, self._told = self.done, time.monotonic()


class LiveTable:
    """A table on the run's page that is replaced while the run goes on. Use as a context manager."""

    def __init__(self, key: str, description: str, seconds: float = 10.0) -> None:
        """``seconds`` that pass at least between two calls of the page."""
        self._key, self._description, self._seconds = _key(key), description, seconds
        self._rows: list[dict[str, Any]] = []
        self._artifact: Any = None
        self._told: float | None = None
        self._on_board: dict[str, Any] | None = None

    def __enter__(self) -> "LiveTable":
        if _board is not None:
            self._on_board = _board.open_table(self._key, self._description)
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_board is not None and _board is not None:
            _board.close(self._on_board)
        else:
            self._tell()

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """These rows in place of those before."""
        self._rows = [dict(row) for row in rows]
        if self._on_board is not None:
            self._on_board["rows"] = self._rows
            return
        if self._told is None or time.monotonic() - self._told >= self._seconds:
            self._tell()

    def _tell(self) -> None:
        if not self._rows or not _in_run():
            return
        from prefect.artifacts import create_table_artifact
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactUpdate

        with _page_may_be_away():
            if self._artifact is None:
                self._artifact = create_table_artifact(self._rows, key=self._key, description=self._description)
            else:  # an artifact anew each time would leave thousands behind
                get_client(sync_client=True).update_artifact(
                    self._artifact, ArtifactUpdate(data=json.dumps(self._rows))
                )
        self._rows, self._told = [], time.monotonic()


@contextmanager
def telling() -> Iterator[Callable[[str, float, float], None]]:
    """A function to call with (title, done, total) of whatever takes long in the block; silent until it is called."""
    with ExitStack() as stack:
        tracks: dict[str, Track] = {}

        def tell(title: str, done: float, total: float) -> None:
            if title not in tracks:
                tracks[title] = stack.enter_context(Track(title, total))
            tracks[title].to(done)

        yield tell


def tracked(items: Iterable[_Item], total: int, title: str) -> Iterator[_Item]:
    """The items, with progress shown while they come."""
    with Track(title, total) as track:
        for item in items:
            track.advance()
            yield item


def table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """A table on the run's page; an empty one is left out."""
    if rows:
        put("table", {"table": [dict(row) for row in rows], "key": _key(key), "description": description})


def markdown(key: str, text: str, description: str = "") -> None:
    """A text on the run's page."""
    put("markdown", {"markdown": text, "key": _key(key), "description": description})


def link(key: str, address: str, text: str) -> None:
    """A link on the run's page."""
    put("link", {"link": address, "link_text": text, "key": _key(key)})


def pictures(key: str, images: Sequence[Image.Image], description: str, columns: int = 8) -> None:
    """A contact sheet on the run's page, inside the artifact itself, so that it outlives the run's files."""
    if images and (_board is not None or _in_run()):
        _show(key, contact_sheet(images, columns), description)


def picture(key: str, png: bytes, description: str) -> None:
    """A picture of our own on the run's page, also inside the artifact."""
    if _board is not None or _in_run():
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image, _page_may_be_away():
            _show(key, image.convert("RGB"), description)


def _show(key: str, image: Image.Image, description: str) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    address = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    put("image", {"image_url": address, "key": _key(key), "description": description})


def note(line: str) -> None:
    """A line in the terminal and in the run's log."""
    console.print(line, markup=False, style="dim", soft_wrap=True)
    if _in_run():
        from prefect.logging import get_run_logger

        get_run_logger().info(line.strip())


def log(line: str, **where: Any) -> None:
    """A line in the run's log alone, with where it belongs: stage, and shard and photo where they are known.

    Prefect adds the run. The form `[stage=ingest shard=0003 photo=a.jpg]` is for whoever searches.
    """
    if _in_run():
        from prefect.logging import get_run_logger

        get_run_logger().info("%s [%s]", line, " ".join(f"{name}={value}" for name, value in where.items() if value))


def put(kind: str, content: dict[str, Any]) -> None:
    """One of Prefect's artifacts (table, markdown, link, image) with the arguments of its `create_…_artifact`."""
    if _board is not None:
        _board.put(kind, content)
    elif _in_run():
        import prefect.artifacts

        getattr(prefect.artifacts, f"create_{kind}_artifact")(**content)


class Refusals:
    """The photos that a stage refused: counted, and the first of them kept for the run's page."""

    def __init__(self, stage: str, shown: int = 500) -> None:
        self.stage, self._shown = stage, shown
        self._rows: list[Any] = []
        self._reasons: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many there are."""
        return self._reasons.total()

    def add(self, rows: Iterable[Any]) -> None:
        """Catalog rows, of which the refused ones count."""
        refused = [row for row in rows if row.status == "refused"]
        self._reasons.update(str(row.reason) for row in refused)
        self._rows += refused[: self._shown - len(self._rows)]

    def show(self) -> None:
        """A table of them, and why, on the run's page."""
        from preprocessing.photos import Reason

        lines = [
            {
                "photo": row.origin,
                "reason": str(row.reason),
                "meaning": Reason(row.reason).sentence,
                "detail": row.detail,
            }
            for row in self._rows
        ]
        for row in self._rows[:_LOGGED]:
            log(f"refused: {row.reason}, {row.detail}", stage=self.stage, shard=row.shard, photo=row.origin)
        counted = ", ".join(f"{reason} {count}" for reason, count in sorted(self._reasons.items()))
        table(f"{self.stage}-refused", lines, f"{self.count} photos refused by {self.stage}: {counted}")


def contact_sheet(images: Sequence[Image.Image], columns: int, side: int = 128) -> Image.Image:
    """The pictures in rows, each fitted into a square of `side` pixels."""
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for place, image in enumerate(images):
        scaled = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(scaled, (place % columns * side, place // columns * side))
    return sheet


@contextmanager
def _page_may_be_away() -> Iterator[None]:
    """What is told every few seconds for days may fail now and then: it is no reason to end the run."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        warnings.warn(f"The run's page could not be told how far it is ({error}): it is tried again.", stacklevel=2)


def _in_run() -> bool:
    import sys

    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def _create_progress(title: str) -> Any:
    from prefect.artifacts import create_progress_artifact

    return create_progress_artifact(progress=0.0, key=_key(title), description=title)


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
