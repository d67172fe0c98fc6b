"""What a run came to, as data (`summary.json`) and as the lines that `moa demo` prints."""

import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from flows.retrain import Journey
from flows.run import Run
from flows.train import loss_change
from flows.truth import truth_scores
from infra.settings import Settings


def summarise(run: Run, journey: Journey, seconds: float) -> dict[str, Any]:
    """Everything that is worth knowing after a run, as plain data."""
    counts = run.catalog.counts(run.fingerprints)
    release = run.releases.resolve(str(journey.release))
    card = run.releases.card(release)
    current = run.releases.current(run.settings.publish.alias)
    scores = truth_scores(run)
    before, after = loss_change(run, journey.run_id)
    summary = {
        "photos": {"in": counts.seen, "kept": counts.kept, "refused": dict(counts.refused)},
        "truth": None if scores is None else scores.as_dict(),
        "training": {
            "start": card["start"],
            "samples": card["samples"],
            "steps": card["train"]["steps"],
            "loss_before": before["loss"],
            "loss_after": after["loss"],
            "falling": after["loss"] < before["loss"],
            "course": card.get("course"),
        },
        "metrics": card["metrics"],
        "verdict": card["verdict"],
        "release": {"number": release.number, "id": release.id, "promoted": journey.promoted},
        "production": None if current is None else current.number,
        "pull": pull_command(run.settings, str(release.number) if current is None else run.settings.publish.alias),
        "lineage": {name: card[name] for name in ("run_id", "inputs", "catalog_version", "catalog_digest", "stages")},
        "nothing_new": journey.nothing_new,
        "stages": [{"stage": one.stage, "seconds": round(one.seconds, 1), "note": one.note} for one in journey.stages],
        "seconds": round(seconds, 1),
    }
    return _with_stages_of(run, summary) if journey.nothing_new else summary


def _with_stages_of(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """A run that found nothing new says what the run that made the release had done."""
    try:
        before = json.loads((run.settings.workspace / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return summary
    return summary | {"stages": before["stages"]} if before["release"]["id"] == summary["release"]["id"] else summary


def write_summary(run: Run, summary: dict[str, Any]) -> Path:
    """Write summary.json into the workspace."""
    path = run.settings.workspace / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", "utf-8")
    return path


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The summary as people read it."""
    console.print()
    for name, value in summary_lines(summary):
        console.print(Text.assemble((f"{name:<16}", "bold"), value), soft_wrap=True)


def summary_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) for each line of the printed summary."""
    photos, metrics, training = summary["photos"], summary["metrics"], summary["training"]
    refused = ", ".join(f"{count} {reason}" for reason, count in photos["refused"].items())
    total = sum(photos["refused"].values())
    why = f": {refused}" if refused else ""
    lines = [("photos", f"{photos['in']} in, {photos['kept']} kept, {total} refused{why}")]
    if summary["truth"]:
        truth = summary["truth"]
        lines.append(("captions", f"{truth['caption_exact']:.3f} exactly right"))
        lines.append(("masks", f"{truth['mask_iou']:.3f} mean IoU over {truth['people']} people"))
    trend = "falling" if training["falling"] else "not falling"
    change = f"{training['loss_before']:.4f} → {training['loss_after']:.4f} on the same samples and noise"
    lines.append(("training loss", f"{change}, {trend} ({training['start']})"))
    for name, field, text in (
        ("identity", "identity", "{:.3f}"),
        ("identity gain", "identity_gain", "{:+.3f} over the prior, on people never seen in training"),
        ("scene accuracy", "scene_ratio", "{:.3f} of the prior's"),
        ("held objects", "object_ratio", "{:.3f} of the prior's"),
        ("background", "background_change", "{:.3f} of another seed's change, under a subject swap"),
        ("two people", "pair_identity", "{:.3f} identity of the worse one of the two"),
    ):
        if metrics.get(field) and metrics[field]["mean"] is not None:  # None: a ratio over nothing
            lines.append((name, text.format(metrics[field]["mean"])))
    release = summary["release"]
    said = "passed the gate" if release["promoted"] else f"kept, not promoted: {summary['verdict']['reasons'][0]}"
    lines.append(("release", f"{release['number']} ({release['id']}), {said}"))
    lines.append(("production", f"release {summary['production']}" if summary["production"] else "nothing yet"))
    lines.append(("pull", summary["pull"]))
    lines.append(("took", f"{summary['seconds']:.0f} s"))
    return lines


def pull_command(settings: Settings, name: str) -> str:
    """What to type, from the folder where the run was started, to fetch the release that `name` names."""
    return shlex.join(["moa", "pull", name, "DIR", *where_options(settings)])


def where_options(settings: Settings) -> list[str]:
    """The options by which a command finds this run's preset and workspace again; none for the demo's own."""
    preset = [] if settings.name == "demo" else ["--preset", settings.name]
    usual = settings.workspace == Path("runs", settings.name).absolute()
    return preset if usual else [*preset, "--workspace", str(settings.workspace)]
