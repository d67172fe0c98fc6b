"""What a job shows arrives where it is waited for, as it is now, whenever one looks."""

import json
from pathlib import Path

from PIL import Image

from flows import artifacts
from flows.job_page import Mirror, StoreBoard, show_left
from infra.storage import DirectoryStore

KEY = "jobs/a/0001/progress.json"


def test_what_is_shown_is_written_and_mirrored(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    board = StoreBoard(store, KEY)
    with board, artifacts.shown_on(board):
        with artifacts.Track("train: steps", 40) as track, artifacts.LiveTable("now", "the latest") as now:
            track.to(7, "train: loss 0.5")
            now.show([{"metric": "loss", "value": "0.5"}])
            board._write()
            middle = json.loads(store.get(KEY))
            track.to(40)
        artifacts.table("kept", [{"a": 1}], "one row")
        artifacts.markdown("said", "text")
        artifacts.link("where", "s3://b/k", "here")
        artifacts.pictures("drawn", [Image.new("RGB", (8, 8))], "one")
        artifacts.table("empty", [], "none")
    last = json.loads(store.get(KEY))
    assert [(part["done"], part["says"]) for part in middle["parts"] if "bar" in part] == [(7, "train: loss 0.5")]
    assert [part["rows"] for part in middle["parts"] if "table" in part] == [[{"metric": "loss", "value": "0.5"}]]
    assert [part["open"] for part in last["parts"]] == [False, False] and last["parts"][0]["done"] == 40
    assert [one["kind"] for one in board.left] == ["table", "markdown", "link", "image"]
    assert board.left[3]["content"]["image_url"].startswith("data:image/jpeg;base64,")
    json.dumps(board.left)

    with Mirror() as mirror:
        mirror.show(middle["parts"])
        track, table = (mirror._shown[number] for number in (0, 1))
        assert isinstance(track, artifacts.Track) and isinstance(table, artifacts.LiveTable)
        assert (track.title, track.total, track.done) == ("train: steps", 40, 7)
        mirror.show(last["parts"])
        assert track.done == 40 and not mirror._shown
        mirror.show(last["parts"])  # what has ended is not opened again
        assert not mirror._shown
    show_left(board.left)  # outside a run there is no page


def test_a_store_that_is_away_costs_the_job_nothing(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file, where the folder should be")
    board = StoreBoard(DirectoryStore(tmp_path), KEY)
    with board, artifacts.shown_on(board), artifacts.Track("x", 2) as track:
        track.advance()
    (tmp_path / "jobs").unlink()
    board._write()
    assert json.loads((tmp_path / KEY).read_text())["parts"][0]["done"] == 1
