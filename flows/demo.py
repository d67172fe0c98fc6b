"""`moa demo` and `moa retrain`: the production DAG, and what came of it as a summary and a report."""

import time
from typing import TYPE_CHECKING

from rich.console import Console

from flows.artifacts import console
from flows.session import machinery
from infra.settings import Settings

if TYPE_CHECKING:
    from flows.retrain import Journey


def demo(settings: Settings, more: int = 0, from_scratch: bool = False) -> None:
    """The retraining on Paperfolk, which first grows by `more` photos."""
    from flows.run import check_inputs
    from flows.world import ask_for_more, granted

    check_inputs(settings)
    if more:
        ask_for_more(settings, more)
    retrain_and_report(settings, from_scratch)
    granted(settings)


def retrain_and_report(settings: Settings, from_scratch: bool = False) -> None:
    """Retrain; write summary.json and report.html into the workspace; print the summary."""
    from flows.run import check_inputs

    started = time.monotonic()
    check_inputs(settings)
    with machinery(settings):
        from flows.retrain import retrain

        journey = retrain(settings, from_scratch)
    conclude(settings, journey, time.monotonic() - started)


def conclude(settings: Settings, journey: "Journey", seconds: float) -> None:
    """Say and write down what a retraining came to."""
    from flows.page import write_report
    from flows.run import Run
    from flows.summary import print_summary, summarise, write_summary

    run = Run(settings)
    with console.status("summary and report"):
        summary = summarise(run, journey, seconds)
        path = write_summary(run, summary)
        page = write_report(run, summary)
    output = Console(highlight=False)  # progress goes to standard error, the result to standard output
    if summary["nothing_new"]:
        number = summary["release"]["number"]
        output.print(f"Nothing new: release {number} was made of exactly these photos and settings.", soft_wrap=True)
    print_summary(summary, output)
    output.print(f"{path}\n{page}", soft_wrap=True, markup=False)
