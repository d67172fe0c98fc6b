"""`python -m tests.faults.repeat`: the fault suite many times in a row, each time with other random moments.

Each round's outcome is kept under `--work` as soon as it is known: after a stop the same command goes on with the next
round, as long as the code is the same (pages for people do not count). At the end a dated page is written into
`tests/benchmarks/results`.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from rich.console import Console

from tests.benchmarks.machine import busy_machine
from tests.benchmarks.revision import code_digest, commit

_SHOWN = 60  # tests in the table
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
console = Console(stderr=True)


@dataclass(frozen=True)
class Round:
    """One time through the suite: seconds by test, and what went wrong by test."""

    seed: str
    commit: str
    machine: str
    seconds: float
    tests: dict[str, float]
    skipped: dict[str, str]
    failures: dict[str, str]


def main() -> None:
    """Run the rounds that are missing, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.repeat", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="rounds in a row")
    parser.add_argument("--work", type=Path, default=Path("runs/faults"), help="where rounds and their logs are kept")
    parser.add_argument("--select", default="faults", help="pytest's -m; '' = all tests of those files")
    parser.add_argument("--name", default="faults", help="of the page")
    parser.add_argument("tests", nargs="*", default=["tests"], help="files and folders, for pytest")
    options = parser.parse_args()
    folder = options.work / options.name / code_digest()
    folder.mkdir(parents=True, exist_ok=True)
    rounds: list[Round] = []
    for number in range(1, options.times + 1):
        kept = folder / f"round-{number:03d}.json"
        if not kept.exists():
            one = run(folder / f"round-{number:03d}", options.select, options.tests)
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(asdict(one), indent=1) + "\n", "utf-8")
            partial.replace(kept)
        rounds.append(Round(**json.loads(kept.read_text("utf-8"))))
        failed = ", ".join(rounds[-1].failures) or "none failed"
        console.print(f"round {number}: {rounds[-1].seconds:.0f} s, {failed}", markup=False, highlight=False)
    page = report(rounds, options.name, options.tests)
    path = RESULTS / f"{date.today().isoformat()}-{options.name}.md"
    path.write_text(page, "utf-8")
    console.print(f"{page}\nWritten to {path}", markup=False, highlight=False)
    if any(one.failures for one in rounds):
        raise SystemExit("Not every round went well.")


def run(name: Path, select: str, tests: Sequence[str]) -> Round:
    """The suite once, with a new seed; its log and JUnit's file lie under `name`."""
    seed, machine, started = secrets.token_hex(4), busy_machine(), time.monotonic()
    junit = name.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", "-m", select, "-v", f"--junitxml={junit}", *tests]
    environment = os.environ | {"FAULTS_SEED": seed, "OMP_NUM_THREADS": "1"}
    with name.with_suffix(".log").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, cwd=ROOT, env=environment).returncode
    seconds = time.monotonic() - started
    if code not in (0, 1):  # not pytest's "some tests failed"
        raise SystemExit(f"pytest ended with {code}: see {name.with_suffix('.log')}.")
    times, skipped, failures = dict[str, float](), dict[str, str](), dict[str, str]()
    for case in ElementTree.parse(junit).iter("testcase"):
        title = str(case.get("name"))
        times[title] = times.get(title, 0.0) + float(case.get("time", 0))
        for found in case:
            if found.tag == "skipped":
                skipped[title] = str(found.get("message"))
            elif found.tag in ("failure", "error"):
                failures[title] = str(found.get("message")).partition("\n")[0][:200]
    return Round(seed, commit(), machine, seconds, times, skipped, failures)


def report(rounds: Sequence[Round], name: str, tests: Sequence[str]) -> str:
    """The rounds as Markdown; of many tests those that took long or failed."""
    failed = sum(len(one.failures) for one in rounds)
    rows = []
    slowest = sorted(rounds[0].tests, key=lambda title: -rounds[0].tests[title])[:_SHOWN]
    shown = {*slowest, *(title for one in rounds for title in one.failures)}
    for title in (title for title in rounds[0].tests if title in shown):
        seconds = [one.tests[title] for one in rounds if title in one.tests]
        bad = sum(title in one.failures for one in rounds)
        rows.append(f"| {title} | {statistics.median(seconds):.0f} | {max(seconds):.0f} | {bad or ''} |")
    each = [
        f"| {number} | {one.seed} | {one.seconds:.0f} | {'; '.join(f'{k}: {v}' for k, v in one.failures.items())} |"
        for number, one in enumerate(rounds, start=1)
    ]
    commits = ", ".join(dict.fromkeys(one.commit for one in rounds))
    skipped = {f"{title} ({reason})" for one in rounds for title, reason in one.skipped.items()}
    return f"""# {name.replace("-", " ").capitalize()} {len(rounds)} times in a row, {date.today().isoformat()}

{rounds[0].machine}. Commit {commits}. `python -m tests.faults.repeat --times {len(rounds)}` on {" ".join(tests)},
each time with other random moments. {sum(len(one.tests) for one in rounds)} tests were run, **{failed} failed**.
Skipped: {"; ".join(sorted(skipped)) or "none"}. Of {len(rounds[0].tests)} tests, those that took long or failed:

| test | seconds, median | slowest | failed |
| --- | --- | --- | --- |
{chr(10).join(rows)}

| round | FAULTS_SEED | seconds | what failed |
| --- | --- | --- | --- |
{chr(10).join(each)}
"""


if __name__ == "__main__":
    main()
