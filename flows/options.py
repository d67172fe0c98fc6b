"""Options that the commands share, and the settings that they make."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from infra.errors import UserError
from infra.settings import Settings, load_settings, preset_names

Preset = Annotated[
    str,
    typer.Option(
        help='A shipped preset ("demo", "sd15", "sdxl") or a path to a .toml file.', autocompletion=preset_names
    ),
]
Workspace = Annotated[Path | None, typer.Option(help="Folder for all that a run leaves; the preset's by default.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, as train.steps=500.")
]
Source = Annotated[
    str | None,
    typer.Option(help='"paperfolk" or KIND:PATH: ffhq, celeba, fastcomposer, webdataset, folder; PATH may be s3://…'),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def read_settings(
    preset: str, workspace: Path | None, changes: list[str] | None, source: str | None = None
) -> Settings:
    """The settings that a command's options name. Raises UserError for a preset, key or value that is none."""
    overrides: dict[str, str] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change!r} is not KEY=VALUE: write for example --set train.steps=500.")
        overrides[key.strip()] = value.strip()
    if source is not None:
        overrides["ingest.source"] = _absolute(source)
    return load_settings(preset, workspace, overrides)


def _absolute(source: str) -> str:
    # Ray's workers may stand in another folder.
    kind, _, path = source.partition(":")
    here = bool(path) and (not re.match("[a-z][a-z0-9+.-]*:", path) or os.path.exists(path))
    return f"{kind}:{Path(os.path.expanduser(path)).absolute()}" if here else source
