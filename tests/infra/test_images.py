"""infra/images without an engine: linted, pinned, without root; and the CPU image's steps in a clean tree."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "infra" / "images").glob("*.Dockerfile"))
_HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


def _steps(path: Path) -> list[tuple[str, str]]:
    """(instruction, words), continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", path.read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.stem for path in FILES] == ["cpu", "cuda", "detectron2", "lavis"]


@pytest.mark.skipif(not _HADOLINT, reason="hadolint is not installed")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_linter_has_nothing_to_say(path: Path) -> None:
    done = subprocess.run([str(_HADOLINT), "--failure-threshold", "info", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_two_stages_pinned_and_not_as_root(path: Path) -> None:
    steps = _steps(path)
    bases = [words for step, words in steps if step == "FROM"]
    assert len(bases) == 2 and bases[0].endswith(" AS build") and " AS " not in bases[1]
    for base in bases:
        image = base.partition(" ")[0]
        assert image == "${MOA_IMAGE}" or re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", image), image
    assert [words for step, words in steps if step == "USER"][-1] == "10001:10001"
    text = " ".join(words for step, words in steps if step == "RUN")
    for package in re.findall(r"install -y --no-install-recommends ((?:\S+=\S+ ?)+)", text):
        assert all("=" in one for one in package.split())
    assert text.count("apt-get update") == text.count("rm -rf /var/lib/apt/lists/*")
    assert "apt-get install" not in re.sub(r"apt-get install -y --no-install-recommends \S+=\d\S*", "", text)
    for wanted in re.findall(r"pip install (.*?)(?:&&|$)", text):
        pinned = "-c constraints.txt" in wanted or "==" in wanted or "@v0.6" in wanted
        assert pinned, wanted
    assert not any(step == "ADD" or re.search("PASSWORD|SECRET|TOKEN", words) for step, words in steps)


@pytest.mark.parametrize("path", FILES[:2], ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_let_through(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    copied = [words.split()[:-1] for step, words in _steps(path) if step == "COPY" and "--from" not in words]
    names = [name for group in copied for name in group]
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in names)
    packages = {one.name for one in ROOT.iterdir() if (one / "__init__.py").exists() and one.name != "tests"}
    assert packages <= set(names), "a package that is not in the image"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The CPU image's environment: what its Dockerfile copies, in a new place, installed as it says; the pinned
    packages are this environment's own, which are the same."""
    folder = tmp_path_factory.mktemp("image")
    source, home = folder / "source", folder / "opt"
    source.mkdir()
    for step, words in _steps(ROOT / "infra/images/cpu.Dockerfile"):
        if step == "COPY" and "--from" not in words:
            *names, _ = words.split()
            for name in names:
                if (ROOT / name).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__", "compose.env")
                    shutil.copytree(ROOT / name, source / name, ignore=ignore)
                else:
                    shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next((home / "lib").glob("python*/site-packages"))
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    done = subprocess.run(
        [sys.executable, *install, "-c", str(source / "constraints.txt"), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (site / "pinned.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)  # it stays behind in the first stage
    (folder / "work").mkdir()
    yield folder


def _typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As in the image: its Python first in the path, its folder, nothing else in the environment."""
    environment = {"PATH": f"{folder / 'opt/bin'}:/usr/bin:/bin", "HOME": str(folder / "work"), "OMP_NUM_THREADS": "1"}
    environment |= {"PREFECT_HOME": str(folder / "work/prefect"), "LANG": "C.UTF-8"}
    return subprocess.run(
        [str(folder / "opt/bin/python"), *words],
        cwd=folder / "work", env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_its_commands_start_in_a_clean_tree(installed: Path) -> None:
    """moa with the presets and weights that it ships, as a package and not as a folder of the project; prefect; ray."""
    assert os.path.isfile(next((installed / "opt/lib").glob("python*/site-packages/flows/cli.py")))
    done = _typed(installed, "-m", "flows.cli", "--help")
    assert done.returncode == 0 and "Photos in at one end" in done.stdout, done.stderr
    done = _typed(installed, "-c", "import flows; print(flows.__file__)")
    assert done.stdout.startswith(str(installed)), "another moa was started"
    done = _typed(installed, "-m", "flows.cli", "metrics", "--once")
    assert done.returncode == 0 and "moa_exporter_store_up 1.0" in done.stdout, done.stderr
    done = _typed(installed, "-m", "flows.cli", "doctor")
    assert "ok" in done.stdout and "missing  models" not in done.stdout, done.stdout + done.stderr
    assert _typed(installed, "-m", "prefect", "--version").stdout.startswith("3.")
    assert "2.60" in _typed(installed, "-m", "ray.scripts.scripts", "--version").stdout
