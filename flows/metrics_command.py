"""`moa metrics`: answer Prometheus, or print once what it would be told."""

import time
from typing import Annotated

import typer

from flows.options import Changes, Preset, Workspace, read_settings

watching = typer.Typer()
PORT = 9465


@watching.command()
def metrics(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where Prometheus asks, on /metrics.")] = PORT,
    address: Annotated[
        str, typer.Option(help="Whom it answers: this machine alone, or with 0.0.0.0 every network.")
    ] = "127.0.0.1",
    once: Annotated[
        bool, typer.Option("--once", help="Print the metrics and end, as for node_exporter's text files.")
    ] = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """What Prometheus asks about photos, shards, stages and releases; reads the store, writes nothing."""
    from flows import service_metrics

    settings = read_settings(preset, workspace, changes)
    if once:
        typer.echo(service_metrics.one_reading(settings), nl=False)
        return
    with service_metrics.serving(settings, address, port) as chosen:
        typer.echo(f"Prometheus is answered on http://{address}:{chosen}/metrics; Ctrl-C ends it.", err=True)
        while True:
            time.sleep(3600)
