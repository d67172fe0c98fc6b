"""Dependencies point one way: flows → preprocessing | moa_model | evaluation → infra, never sideways, never back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"preprocessing", "moa_model", "evaluation"}
MAY_IMPORT = {
    "flows": {"flows", *CORE, "infra"},
    "preprocessing": {"preprocessing", "infra"},
    "moa_model": {"moa_model", "infra"},
    "evaluation": {"evaluation", "infra"},
    "infra": {"infra"},
}
# The only rooms that know who orchestrates and who computes.
ORCHESTRATION = {"infra/ray_session.py", "infra/ray_jobs.py", "infra/prefect_server.py", "infra/shard_feed.py"}
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "base", "misc", "stuff"}
NEEDS_OPERATORS = {"torchvision", "transformers", "diffusers", "facenet_pytorch"}

MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def _imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports out in full"
            found.append((node.lineno, node.module or ""))
    return sorted(found)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for line, module in _imports(path):
        top = module.partition(".")[0]
        assert top != "tests", f"line {line}: production code imports tests"
        if top in MAY_IMPORT:
            assert top in MAY_IMPORT[package], f"line {line}: {package} imports {module}"
        if top in {"prefect", "ray"}:
            assert package == "flows" or _name(path) in ORCHESTRATION, f"line {line}: {package} knows {top}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_torchvisions_operators_are_defined_first(path: Path) -> None:
    if _name(path) == "infra/torchvision_ops.py":
        return
    # A package's __init__ runs before any of its modules.
    opening = _imports(ROOT / path.relative_to(ROOT).parts[0] / "__init__.py")
    imports = [(0, module) for _, module in opening if module == "infra.torchvision_ops"] + _imports(path)
    wanting = [line for line, module in imports if module.partition(".")[0] in NEEDS_OPERATORS]
    defining = [line for line, module in imports if module == "infra.torchvision_ops"]
    if wanting:
        assert defining and defining[0] < wanting[0], f"line {wanting[0]}: import infra.torchvision_ops first"


def test_modules_have_names_that_say_something() -> None:
    assert [_name(path) for path in MODULES if path.stem in SAYS_NOTHING and _name(path) not in ZOO_NAMES] == []


# "base" is what diffusion calls the pretrained model; here it names its recipe.
ZOO_NAMES = {"infra/zoo/base.py"}


def test_files_stay_readable() -> None:
    assert {_name(path): lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 400} == {}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_nothing_is_unpickled(path: Path) -> None:
    text = path.read_text("utf-8")
    if path == ROOT / "infra" / "shard_feed.py":
        # What our own processes send through Ray, which unpickles everything that it brings: nobody else's bytes.
        assert text.count("pickle.loads(batch)") == 1
        text = text.replace("pickle.loads(batch)", "")
    for call in ("pickle.load", "torch.load(", "allow_pickle=True", "use_safetensors=False", "yaml.load("):
        assert call not in text, f"{call} could run code"
