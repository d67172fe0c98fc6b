"""The command line's promises: quick help, one sentence and exit code 2 for a user's mistake."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import typer
from PIL import Image

from flows import cli
from flows.options import read_settings
from infra.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def moa(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_help_loads_none_of_the_heavy_packages() -> None:
    assert _loaded("flows.cli", "torch", "ray", "prefect", "diffusers") == "[]"


def test_the_driver_leaves_torch_to_its_workers() -> None:
    """Two seconds and 200 MB of whatever comes before the training, and of the actor that is told how far it is."""
    assert _loaded("flows.retrain", "torch", "diffusers") == "[]"
    assert _loaded("flows.training_job", "torch", "prefect", "scipy") == "[]"


def _loaded(module: str, *heavy: str) -> str:
    code = f"import sys, {module}; print(sorted({set(heavy)} & sys.modules.keys()))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def test_help_names_every_command() -> None:
    answer = moa("--help")
    assert answer.returncode == 0
    names = (
        "demo retrain ingest duplicates caption segment shard train evaluate publish forget pull doctor report generate"
    )
    assert all(name in answer.stdout for name in names.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [("moa sta", "status"), ("moa retrain --pre", "--preset"), ("moa retrain --preset sd1", "sd15")],
)
def test_a_shell_completes_commands_options_and_presets(words: str, offered: str) -> None:
    asked = {"_MOA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-m", "flows.cli"]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | asked, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [offered] and done.stderr == ""


def test_a_mistake_is_one_sentence_and_exit_code_two(tmp_path: Path) -> None:
    answer = moa("retrain", "--source", "folder:/does/not/exist", "--workspace", str(tmp_path))
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("moa: ") and "/does/not/exist" in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["retrain", "--preset", "nothing"], "demo"),
        (["retrain", "--set", "train.stepz=3"], "train.steps"),
        (["retrain", "--set", "train.steps"], "KEY=VALUE"),
        (["retrain", "--set", "train.steps=many"], "train.steps"),
        (["retrain", "--source", "flickr:x"], "folder:PATH"),
        (["pull", "production", "somewhere"], "nothing has been published"),
        (["report"], "moa demo"),
        (["generate", "--prompt", "a man", "--out", "x.txt"], ".png"),
        (["generate", "--prompt", "a tree", "--out", "x.png", "--subject", "a.png"], '"man"'),
        (["generate", "--prompt", "a man", "--out", "x.png", "--subject", "a.png"], "a.png"),
        (["no-such-command"], "no-such-command"),
        (["demo", "--more", "-3"], "--more"),
        (["ingest", "--no-such-option"], "moa ingest --help"),
        (["forget"], "moa forget PHOTO"),
        (["forget", "a.png", "--purge"], "--purge"),
        (["retrain", "--set", "near_duplicates.cosine=2"], "near_duplicates.cosine"),
        (["train", "--json"], "--dry-run"),
        (["train", "--dry-run", "--set", "train.batch_size=1"], "less than workers"),
        (["train", "--dry-run", "--set", "models.base.location=/nowhere"], "/nowhere"),
    ],
)
def test_mistakes(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moa", *arguments])
    assert cli._run() == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.startswith("moa: ") and printed.count("\n") == 1


def test_doctor_ends_with_one_where_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--set", "ingest.source=folder:/does/not/exist", "--workspace", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["moa", "doctor", *missing])
    assert cli._run() == 1
    printed = capsys.readouterr().out
    assert "missing  ingest.source: no folder /does/not/exist" in printed and "ok       storage" in printed


def test_a_dry_run_is_a_page_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["moa", "train", "--dry-run", "--set", "train.steps=12345"])
    assert cli._run() == 0
    printed = capsys.readouterr().out
    assert "12,345 steps" in printed and "memory per GPU" in printed and "Assumed, not measured" in printed
    assert list(tmp_path.iterdir()) == []


def test_stopping_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["moa"])
    assert cli._run() == 130
    assert capsys.readouterr().err.strip() == "moa: stopped; the same command continues where it was."


def test_ctrl_c_ends_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")
    command = [sys.executable, "-m", "flows.cli", "ingest", "--source", f"folder:{tmp_path / 'photos'}"]
    command += ["--workspace", str(tmp_path / "work")]
    run = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "work" / "prefect").exists():  # the machinery is on its way
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and said.decode().strip().endswith(cli._STOPPED)


_WAITS = """
import multiprocessing, os, threading, typer
from flows import cli
def up() -> None:
    try:
        os.write(1, b"waits\\n")
        threading.Event().wait()
    except KeyboardInterrupt:  # the signal came before the wait
        threading.Event().wait()
cli.app = app = typer.Typer()
cli._PATIENCE_SECONDS = {patience}
@app.command()
def wait() -> None:
    import polars
    children = [multiprocessing.get_context("fork").Process(target=up) for _ in range({children})]
    for child in children:
        child.start()
    up()
cli.main()
"""


@contextmanager
def _waiting(patience: float, children: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A command whose main thread waits without an end, which polars' own handler of Ctrl-C has it begin again."""
    pipe, code = subprocess.PIPE, _WAITS.format(patience=patience, children=children)
    command = [sys.executable, "-c", code]
    run = subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        assert run.stdout is not None
        assert [run.stdout.readline() for _ in range(children + 1)] == ["waits\n"] * (children + 1)
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def test_ctrl_c_ends_what_waits_without_an_end() -> None:
    with _waiting(1.0) as run:
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
        assert run.returncode == 130 and said.strip() == cli._STOPPED


def test_the_second_ctrl_c_ends_it_at_once_and_a_childs_is_none() -> None:
    with _waiting(3600.0, children=2) as run:
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        time.sleep(3.0)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
        assert run.returncode == 130 and said.strip().endswith(cli._STOPPED)


def test_settings_of_options(tmp_path: Path) -> None:
    settings = read_settings("demo", tmp_path, ["train.steps=7", "evaluate.seeds=[3, 4]"], "folder:pictures")
    assert settings.train.steps == 7 and settings.evaluate.seeds == [3, 4]
    assert settings.ingest.source == f"folder:{Path('pictures').absolute()}"
    with pytest.raises(UserError):
        read_settings("demo", tmp_path, ["nonsense"])
