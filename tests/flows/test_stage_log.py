"""How runs of stages end is written down, whatever ends them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows.cancellation import FlowCancelled, stage_flow
from flows.stage_log import FOLDER, Outcome, last_run, last_runs, note_run, noted
from infra.errors import UserError
from infra.settings import Settings, load_settings
from infra.storage import DirectoryStore


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings("demo", tmp_path / "workspace")


@pytest.fixture
def store(settings: Settings) -> DirectoryStore:
    return DirectoryStore(Path(settings.store_root))


def test_counts_go_on_and_few_objects_stay(store: DirectoryStore) -> None:
    assert last_run(store, "train") is None and last_runs(store) == []
    for number in range(1, 31):
        note_run(store, "train", Outcome.FAILED if number % 3 == 0 else Outcome.FINISHED, 2.0)
    run = last_run(store, "train")
    assert run is not None and (run.number, run.outcome, run.seconds) == (30, "failed", 2.0)
    assert run.totals == {"finished": 20, "failed": 10}
    assert 0 < run.finished <= run.ended  # when it last ended well is known after a failure
    assert len(store.list(f"{FOLDER}/train/")) == 20
    note_run(store, "caption", Outcome.FAILED, 1.0)
    assert [(one.stage, one.finished) for one in last_runs(store)] == [("caption", 0.0), ("train", run.finished)]


def test_what_another_version_wrote_is_passed_over(store: DirectoryStore) -> None:
    note_run(store, "train", Outcome.FINISHED, 1.0)
    store.put(f"{FOLDER}/train/00000002.json", b'{"of": "a later moa"}')
    run = last_run(store, "train")
    assert run is not None and run.number == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "finished"),
        (UserError("x"), "refused"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_however_a_run_ends(
    settings: Settings, store: DirectoryStore, error: BaseException | None, outcome: str
) -> None:
    def body() -> None:
        with noted("shard", settings):
            if error is not None:
                raise error

    if error is None:
        body()
    else:
        with pytest.raises(type(error)):
            body()
    run = last_run(store, "shard")
    assert run is not None and run.outcome == outcome and run.totals == {outcome: 1}


def test_a_store_that_cannot_be_written_is_said_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="How shard ended could not be written down"), noted("shard", settings):
        pass


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_a_flow_writes_one_line_and_a_job_none(prefect: None, settings: Settings, store: DirectoryStore) -> None:
    @stage_flow("segment")
    def segment(settings: Settings, cancelled: bool = False) -> str:
        if cancelled:
            raise FlowCancelled("enough")
        return "done"

    assert segment(settings) == "done"
    segment(settings, cancelled=True, return_state=True)
    assert segment.fn(settings) == "done"  # in a job on a cluster, whose flow is elsewhere
    run = last_run(store, "segment")
    assert run is not None and run.totals == {"finished": 1, "stopped": 1}
