"""What was shown is read back as others would: TensorBoard's reader, a scrape over HTTP, Prefect's API."""

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flows.painting import to_png
from flows.training_job import picture_key
from flows.training_metrics import EventFiles, LiveMetrics, LivePictures, MetricsServer
from infra.errors import UserError
from infra.storage import DirectoryStore, Key, Pieces

RUN = "0123456789abcdef"
PREFIX = f"runs/{RUN}/tensorboard"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def _row(step: int, loss: float = 0.5) -> dict[str, float]:
    return {
        "step": step,
        "loss/total": loss,
        "loss/masked": loss / 2,
        "optimizer/gradient_norm": 1.5,
        "optimizer/learning_rate": 1e-4,
        "speed/images_per_second": 12.5,
        "speed/data_wait": 0.25,
        "memory/peak_bytes": 3e9,
        f"router/{LAYER}": 0.375,
    }


def _curve(store: DirectoryStore, tag: str = "loss/total") -> dict[int, float]:
    events = EventAccumulator(store.uri(PREFIX), size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Scalars(tag)
    assert len({scalar.step for scalar in scalars}) == len(scalars), "a step is doubled"
    return {scalar.step: scalar.value for scalar in scalars}


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_rows_are_read_back_by_tensorboard(store: DirectoryStore) -> None:
    files = EventFiles(store, PREFIX)
    for step in (10, 20):
        files.add(_row(step, loss=1 / step))
    assert store.list() == []  # they wait
    files.publish()
    files.publish().result()
    assert len(store.list(f"{PREFIX}/")) == 1
    assert _curve(store) == pytest.approx({10: 0.1, 20: 0.05})
    assert set(_curve(store, f"router/{LAYER}").values()) == {0.375}
    events = EventAccumulator(store.uri(PREFIX))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(_row(1)) - {"step"}


def test_a_curve_goes_on_where_the_checkpoint_was(store: DirectoryStore) -> None:
    """Killed twice after steps that no checkpoint holds; the second attempt did not even reach one of its own."""
    attempts = [(0, range(10, 60, 10), "first"), (30, range(40, 50, 10), "second"), (30, range(40, 90, 10), "third")]
    for place, (continued, steps, _) in enumerate(attempts):
        files = EventFiles(store, PREFIX, continued)
        for step in steps:
            files.add(_row(step, loss=place))
            files.publish().result()
    curve = _curve(store)
    assert list(curve) == list(range(10, 90, 10))
    assert [curve[step] for step in (10, 30, 40, 80)] == [0, 0, 2, 2]


def test_files_are_few_whole_and_never_changed(store: DirectoryStore) -> None:
    files = EventFiles(store, PREFIX, seconds=0.0)
    contents: dict[str, bytes] = {}
    for step in range(1, 101):
        files.add(_row(step)).result()
        now = {key: store.get(key) for key in store.list()}
        assert now.items() >= contents.items()
        contents = now
    files.publish()
    files.close()
    assert list(_curve(store)) == list(range(1, 101))
    assert len(contents) < 60  # the more there is, the more goes into one


def test_another_attempt_that_still_writes_takes_nothing_away(store: DirectoryStore) -> None:
    first, second = EventFiles(store, PREFIX), EventFiles(store, PREFIX, continued=10)
    first.add(_row(10, loss=1.0))
    first.publish().result()
    second.add(_row(20, loss=2.0))
    second.publish().result()
    assert _curve(store) == {10: 1.0, 20: 2.0}


def _png(colour: str) -> bytes:
    return to_png(Image.new("RGB", (6, 4), colour))


def _shown(store: DirectoryStore) -> dict[int, bytes]:
    events = EventAccumulator(store.uri(PREFIX))
    events.Reload()
    assert events.Tags()["images"] == ["pictures"]
    shown = events.Images("pictures")
    assert all((one.width, one.height) == (6, 4) for one in shown)
    return {one.step: one.encoded_image_string for one in shown}


def test_pictures_are_stored_and_stand_beside_the_curve(store: DirectoryStore) -> None:
    """Killed after step 20, whose checkpoint is not there: what was drawn is shown again, and nothing is drawn anew."""
    red, blue, keys = _png("red"), _png("blue"), [picture_key(RUN, step) for step in (0, 10, 20)]
    files = EventFiles(store, PREFIX)
    files.add(_row(10))
    files.add_picture(10, keys[1], red)
    files.add(_row(20))
    files.add_picture(20, keys[2], blue)
    files.publish().result()
    assert (store.get(keys[1]), store.get(keys[2])) == (red, blue)
    assert _shown(store) == {10: red, 20: blue}
    again = EventFiles(store, PREFIX, continued=10)
    again.add(_row(20))
    again.add_picture(20, keys[2], None)
    again.publish().result()
    assert _shown(store) == {10: red, 20: blue} and list(_curve(store)) == [10, 20]


class _StoreThatIsAway(DirectoryStore):
    away = True

    def put(self, key: Key, data: Pieces) -> None:
        if self.away:
            raise OSError("the store is away")
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        if self.away:
            raise OSError("the store is away")
        return super().create(key, data)


def test_what_cannot_be_written_is_told_and_comes_with_the_next(tmp_path: Path) -> None:
    store, said = _StoreThatIsAway(tmp_path / "store"), list[str]()
    files = EventFiles(store, PREFIX, tell=said.append)
    files.add(_row(10))
    files.publish().result()
    files.add_picture(10, picture_key(RUN, 10), _png("red")).result()
    files.add(_row(20)).result()
    assert len(said) == 3 and all("could not be written" in sentence and "away" in sentence for sentence in said)
    assert store.list() == []
    store.away = False
    files.add(_row(30))
    files.publish()
    files.close()
    assert list(_curve(store)) == [10, 20, 30] and _shown(store) == {10: _png("red")}
    assert store.exists(picture_key(RUN, 10)) and len(said) == 3


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _scrape(port: int) -> dict[tuple[str, str], float]:
    """Value by sample name and the label beside the run's."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.status == 200
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.labels["run"] == RUN for sample in samples)
    return {(one.name, one.labels.get("loss") or one.labels.get("layer") or ""): one.value for one in samples}


def test_prometheus_reads_the_latest_row(port: int) -> None:
    with MetricsServer(port, RUN, continued=500) as server:
        assert _scrape(port) == {}
        server.show(_row(510, loss=0.9))
        server.show(_row(520, loss=0.5))
        found = _scrape(port)
        told = found.pop(("moa_training_updated_timestamp_seconds", ""))
        assert found.pop(("moa_training_steps_created", ""), told) > 1.7e9 < told
        assert found == {
            ("moa_training_step", ""): 520,
            ("moa_training_steps_total", ""): 20,  # by this process
            ("moa_training_loss", "total"): 0.5,
            ("moa_training_loss", "masked"): 0.25,
            ("moa_training_gradient_norm", ""): 1.5,
            ("moa_training_learning_rate", ""): 1e-4,
            ("moa_training_images_per_second", ""): 12.5,
            ("moa_training_data_wait_ratio", ""): 0.25,
            ("moa_training_memory_bytes", ""): 3e9,
            ("moa_training_router_share", LAYER): 0.375,
        }
        server.show({**_row(510), "speed/mfu": 0.5})  # a worker died: back to the checkpoint
        server.show(_row(520))
        assert _scrape(port)["moa_training_steps_total", ""] == 30
        assert _scrape(port)["moa_training_mfu_ratio", ""] == 0.5
    with pytest.raises(OSError):
        _scrape(port)
    with MetricsServer(port, RUN):  # the port is free again
        assert _scrape(port) == {}


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", port))
        other.listen()
        with pytest.raises(UserError, match=f"Port {port} .*monitoring.prometheus_port"), MetricsServer(port, RUN):
            pass


def test_outside_of_a_flow_only_the_terminal_is_told() -> None:
    """No Prefect is reached; port 0 answers nobody."""
    LivePictures(DirectoryStore(Path("nowhere")), RUN, 0).look(20)
    with LiveMetrics(RUN, 20, seconds=0.0) as live:
        live.show(None)
        live.show(_row(10))
        live.finished()


def test_a_row_that_is_told_again_is_no_news(port: int) -> None:
    """The driver asks every second; when the numbers came last must stay true, also once a loss is not a number."""
    with LiveMetrics(RUN, 20, port=port) as live:
        live.show(_row(10, loss=float("nan")))
        told = _scrape(port)["moa_training_updated_timestamp_seconds", ""]
        live.show(_row(10, loss=float("nan")))
        assert _scrape(port)["moa_training_updated_timestamp_seconds", ""] == told
        live.show(_row(20))
        assert _scrape(port)["moa_training_updated_timestamp_seconds", ""] > told


@pytest.fixture(scope="module")
def prefect_api() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_the_runs_page_follows(prefect_api: None, port: int) -> None:
    """Progress and latest row, in place; a page that somebody deletes meanwhile does not end the training."""
    seen: list[dict[str, tuple[object, str]]] = []

    def page() -> dict[str, tuple[object, str]]:
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/artifacts/filter", json={}).json()
        assert len({one["key"] for one in found}) == len(found), "one of each, however often it is told"
        return {one["key"]: (one["data"], one["description"]) for one in found}

    @flow
    def training() -> float:
        with LiveMetrics(RUN, 40, port=port, seconds=0.0) as live:
            for step in (10, 11, 30):
                live.show(_row(step, loss=1 / step))
                seen.append(page())
            scraped = _scrape(port)["moa_training_step", ""]
            with get_client(sync_client=True) as client:
                for one in client.request("POST", "/artifacts/filter", json={}).json():
                    client.request("DELETE", "/artifacts/{id}", path_params={"id": one["id"]})
            with pytest.warns(UserWarning, match="could not be told"):
                live.show(_row(40))
            live.finished()
        return scraped

    assert training() == 30
    progress = [one["train-steps"] for one in seen]
    assert [share for share, _ in progress] == [25.0, 27.5, 75.0]
    assert progress[-1][1] == "train: loss 0.0333, 12.5 images/s"
    rows = {step: str(one["train-now"][0]) for step, one in zip((10, 11, 30), seen, strict=True)}
    assert all(f'"{step}"' in text and f"router/{LAYER}" in text for step, text in rows.items())


def test_pictures_come_to_the_runs_page_once_each(prefect_api: None, store: DirectoryStore) -> None:
    """One that never comes is passed over when the next one is due."""

    def page() -> list[str]:
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/artifacts/filter", json={}).json()
        mine = [one for one in found if one["key"] == "train-pictures"]
        assert all(one["type"] == "image" and one["data"].startswith("data:image/jpeg;base64,") for one in mine)
        return sorted(one["description"].partition(":")[0] for one in mine)

    @flow
    def training() -> list[list[str]]:
        seen, live = [], LivePictures(store, RUN, 10, continued=5)
        for step, stored in ((9, 0), (10, 0), (12, 10), (14, 0), (20, 0), (29, 0), (30, 30), (40, 0), (41, 40)):
            if stored:
                store.put(picture_key(RUN, stored), _png("red"))
            live.look(step)
            seen.append(page())
        return seen

    seen = training()
    assert seen[:4] == [[], [], ["Step 10"], ["Step 10"]]
    assert seen[-2:] == [["Step 10", "Step 30"], ["Step 10", "Step 30", "Step 40"]]
    assert [LivePictures(store, RUN, 10, continued)._next for continued in (0, 9, 40, 45)] == [10, 10, 40, 40]
