"""`moa evaluate --model …` and `moa compare …`: any model by the evaluation's protocol, and two side by side."""

from typing import Annotated, Any

import typer

from flows.answers import say_json, show_table
from flows.options import AsJson, Changes, Preset, Workspace, read_settings
from infra.settings import Settings

comparing = typer.Typer()

MODELS = "prior, release:7, release:production or ip-adapter:PATH."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"7, production, {MODELS}")]


def evaluate_model(settings: Settings, model: str) -> None:
    """Draw and measure it as releases are, show the numbers beside production's, and say where the pictures are."""
    from flows.artifacts import console
    from flows.contenders import find_contender
    from flows.run import Run, check_inputs
    from flows.session import machinery

    check_inputs(settings)
    model = find_contender(Run(settings), model).spec  # what is not there is said before anything starts
    with machinery(settings):
        from flows.evaluate import evaluate
        from flows.world import prepare_world

        prepare_world(settings)
        result = evaluate(settings, model=model)
    console.print(f"[bold]{result.stage}[/] {result.note} [dim]{result.seconds:.0f} s[/]")
    _show(result.facts)


def _show(facts: dict[str, Any]) -> None:
    from flows.evaluation_scores import metric_table

    beside = f"release {facts['production_release']}, production"
    rows = []
    for row in metric_table(facts["metrics"], facts["production"]):
        line = {"measure": row["label"], facts["model"]: row["release"], "prior": row["prior"]}
        rows.append({**line, **({beside: row["production"]} if facts["production"] else {}), "": row["note"]})
    show_table(f"What {facts['model']} is worth", rows)
    if facts["metrics"]["router_iou"] is None:
        typer.echo(f"{facts['model']} has no router maps: the router's measures are absent.")
    typer.echo(f"Pictures: {facts['pictures']}; beside them scores.parquet and metrics.json.")


@comparing.command()
def compare(
    first: Model,
    second: Model,
    as_json: AsJson = False,
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Two evaluated models side by side: every measure, their difference on the same pictures, and who is better."""
    from flows.compare import compare_models

    found = compare_models(read_settings(preset, workspace, changes), first, second)
    if as_json:
        return say_json(found)
    rows = [
        {
            "measure": f"{row['measure']} {'↑' if row['better'] == 'higher' else '↓'}",
            found["first"]: f"{row['first']:.3f}",
            found["second"]: f"{row['second']:.3f}",
            "difference (95 %)": f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})",
            "better": row["winner"] or "by chance",
        }
        for row in found["measures"]
    ]
    show_table(f"{found['second']} beside {found['first']}, {found['pictures']} pictures each", rows)
    for name in dict.fromkeys(found["absent"].values()):
        absent = [measure for measure, has in found["absent"].items() if has == name]
        typer.echo(f"Measured of {name} alone: {', '.join(absent)}.")
