"""What the runbooks tell people to type exists: commands, options, make's targets, settings and files."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from flows.cli import app
from infra.settings import load_settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "infra" / "runbooks").glob("*.md"))
# What people make by hand.
MADE_BY_HAND = {"infra/compose.env", "infra/proxy/htpasswd"}
WANTED = (
    "first-deployment add-a-source run-failed roll-back rotate-keys forget-a-person move-to-another-bucket upgrade "
    "restore-from-backup"
).split()


def test_every_page_is_there_and_one_page_long() -> None:
    found = {path.stem: path.read_text("utf-8") for path in PAGES}
    assert found.keys() == {*WANTED, "README"}
    index = found.pop("README")
    for name, text in found.items():
        assert f"({name}.md)" in index and len(text.splitlines()) <= 75, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_to_be_typed_exists(path: Path) -> None:
    for line in _typed(path.read_text("utf-8")):
        program, *words = shlex.split(line, comments=True)
        if words == ["…"]:
            continue
        if program == "make":
            targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
            assert words[0] in targets, line
        elif words:
            _parse(line, words)


def test_a_wrong_option_is_found() -> None:
    for line in ("moa releases rollback --because x", "moa catalog verify --mend", "moa undo", "moa ingest a b"):
        with pytest.raises(AssertionError):
            _parse(line, line.split()[1:])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_settings_and_files_that_are_named_exist(path: Path) -> None:
    groups = load_settings("demo").model_dump()
    for span in re.findall(r"`([^`\n]+)`", path.read_text("utf-8")):
        if match := re.fullmatch(r"([a-z_]+)\.([a-z_]+|\*)( .*)?", span):
            group, name = match[1], match[2]
            if group in groups:
                assert name == "*" or name in groups[group], span
        elif re.fullmatch(r"(infra|flows|tests|preprocessing)/[\w./-]+", span):
            assert span in MADE_BY_HAND or (ROOT / span).exists(), span
    for link in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / link).exists(), link


def _typed(text: str) -> Iterator[str]:
    """The commands of moa and make, in indented lines and in code."""
    lines = re.findall(r"^ {4,}((?:moa|make) .*)$", text, re.M)
    for line in [*lines, *re.findall(r"`((?:moa|make) [^`]+)`", text.replace("\n", " "))]:
        yield re.sub(r"\s+", " ", line)


def _parse(line: str, words: list[str]) -> None:
    """Typer takes the words; nothing is run."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
        context = click.Context(command, parent=context)
    try:
        parsed = command.make_context(command.name, list(words), parent=context.parent)
    except Exception as error:
        raise AssertionError(f"{line}: {getattr(error, 'message', error)}") from error
    assert not (hasattr(command, "commands") and parsed.args), f"{line}: there is no such command"
    rest = getattr(parsed, "_protected_args", []) or []
    assert not (hasattr(command, "commands") and rest), f"{line}: there is no such command"


def test_every_test_that_the_threats_page_names_exists() -> None:
    text = (ROOT / "infra/threats.md").read_text("utf-8")
    written = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 20 and {name for name in named if f"def {name}(" not in written} == set()
    assert len(text.splitlines()) <= 75
