"""What commands answer: JSON for programs, tables for people."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def say_json(found: Any) -> None:
    """For programs."""
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False, default=str))


def show_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """For people; numbers to the right, long texts folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = columns or list(rows[0] if rows else [])
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in columns:
        numbers = all(isinstance(row[name], (int, float)) for row in rows)
        table.add_column(name, justify="right" if rows and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{row[name]:,}" if type(row[name]) is int else str(row[name])) for name in columns))
    console = Console(highlight=False)
    console.print(table if columns else f"{title}: none", markup=False)
