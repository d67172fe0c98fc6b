"""`python -m tests.faults.soak`: the service retrains many times in a row, and each time something happens to it.

`moa up` as it is, with its store on an S3 server: Prefect, PostgreSQL where it is installed, worker, Ray, watcher. A
few photos are dropped into the watched folder, at a random moment one thing is killed, cut off or filled up, and nobody
touches anything until every photo is in a release, or refused for a reason. Then it is looked at whether the registry
is consistent, each photo accounted for, nothing ran twice, and how much memory and disk the service holds. At the end
a dated page is written into `tests/benchmarks/results`.
"""

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import boto3
import httpx
import psutil
from rich.console import Console

from flows.run import Run
from infra.errors import UserError
from infra.service import read_state
from infra.service_processes import held_mb, marked
from infra.settings import Settings
from infra.upkeep import verify
from tests.benchmarks.machine import busy_machine
from tests.benchmarks.revision import commit
from tests.faults.service_faults import KEYS, Bucket, Fault, family, faults, run_processes
from tests.faults.small_disk import MayNotMount, SmallDisk
from tests.running_service import RunningService

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PHOTOS = 6  # a batch; the last one is no picture
_FIRST_PHOTOS = 24  # the first, in peace: of so many some are kept, whatever random models see in them
_OUTAGE_SECONDS = (3.0, 20.0)
_DISK_MB = 2000
_PEACE = "none"  # in place of a fault
_LOOK_SECONDS = 1.0
_TRIES = 3
_LONGEST_SECONDS = 900.0  # of one retraining, with all that is taken up again
_GOING = ("RUNNING", "PENDING", "CANCELLING", "SCHEDULED", "PAUSED")
_CREEP_FROM = 10  # retrainings: of fewer a slope says nothing
_MEMORY_MB, _DISK_MB_EACH = 8.0, 40.0  # the most that a retraining may add: tested at the end
_RAY_HEAD_MB = 1300.0  # it begins with 1,100 and each leaves 20: reached within a soak, unless Ray is killed before
_BOUNDED = ("ray-head", "prometheus")  # by service.ray_head_mb, and by the two hours that it keeps in memory
console = Console(stderr=True)


@dataclass
class Round:
    """One retraining: what happened to it, what came of it, and what the service holds after it."""

    number: int
    fault: str
    hit: str = ""
    at: float = 0.0
    """Seconds after the photos came."""
    lasted: float = 0.0
    seconds: float = 0.0
    release: str = ""
    seen: int = 0
    kept: int = 0
    runs: list[str] = field(default_factory=list)
    """How its flow runs ended."""
    restarts: dict[str, int] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    """By part, MB; what is shared is counted once."""
    disk: dict[str, float] = field(default_factory=dict)
    """By place, MB."""
    wrong: list[str] = field(default_factory=list)


class Soak:
    """The service and what is known of it."""

    def __init__(self, service: RunningService, bucket: Bucket) -> None:
        self.service = service
        self.dropped: dict[str, bool] = {}  # name -> whether it is a picture
        storage = service.settings.storage.model_copy(update={"endpoint_url": bucket.server})
        self.settings: Settings = service.settings.model_copy(update={"storage": storage})

    def retrain(self, number: int, fault: Fault | None, at: float, lasts: float) -> Round:
        """Drop photos, let it happen `at` seconds later for `lasts` seconds, and wait until all is done."""
        service = self.service
        before, runs_before = self._restarts(), {run["id"] for run in service.retrains()}
        first = len(self.dropped)
        numbers = range(first, first + (PHOTOS if fault else _FIRST_PHOTOS))
        broken = {numbers[-1]}
        names = service.drop(numbers, broken)
        self.dropped |= {name: one not in broken for name, one in zip(names, numbers, strict=True)}
        one, began = Round(number, fault.kind if fault else _PEACE), time.monotonic()
        ends: float | None = None
        most_runs = 0
        try:
            while True:
                passed = time.monotonic() - began
                if passed > _LONGEST_SECONDS:
                    one.wrong.append(f"not done after {passed:.0f} s: {self._why_not()}")
                    break
                if fault and not one.hit and passed >= at and (hit := fault.begin()):
                    one.hit, one.at = hit, time.monotonic() - began
                    ends = one.at + lasts if fault.end else None
                    console.print(f"  {one.at:.0f} s: {fault.kind} ({hit})", markup=False)
                if ends is not None and passed >= ends and fault and fault.end:
                    fault.end()
                    one.lasted, ends = time.monotonic() - began - one.at, None
                most_runs = max(most_runs, len(run_processes(service)))
                if ends is None and self._why_not() == "":
                    break
                time.sleep(_LOOK_SECONDS)
        finally:
            if ends is not None and fault and fault.end:
                fault.end()
        one.seconds = time.monotonic() - began
        if most_runs > 1:
            one.wrong.append(f"{most_runs} runs' processes lived at the same time")
        runs = [run for run in service.retrains() if run["id"] not in runs_before]
        one.runs = [run["state"]["name"] for run in runs]
        after = self._restarts()
        one.restarts = {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}
        self._judge(one)
        one.memory, one.disk = self._memory(), self._disk()
        return one

    def until_hit(self, number: int, fault: Fault, at: float, lasts: float) -> list[Round]:
        """`retrain`; once more, and earlier, where it was over before anything could happen to it."""
        tried: list[Round] = []
        for _ in range(_TRIES):
            tried.append(one := self.retrain(number, fault, at, lasts))
            if one.hit:
                break
            at /= 2
        else:
            one.wrong.append("each time it was over before anything could happen to it")
        return [_said(one) for one in tried]

    def _why_not(self) -> str:
        """What is missing until all photos are in a release or refused and nothing is at work; "" = nothing."""
        try:
            now = time.time()
            for run in self.service.retrains(_GOING):
                if run["state"]["type"] != "SCHEDULED" or _moment(run["expected_start_time"]) <= now + 5:
                    return f"the run {run['name']} is {run['state']['name']}"
            down = [name for name, about in self.service.parts().items() if about["state"] not in ("ready", "done")]
            if down:
                return f"{', '.join(down)} not up"
            # Photos that a run took in before it was killed are known, and in no release yet.
            ended = self.service.retrains(("COMPLETED", "FAILED", "CRASHED", "CANCELLED"))
            last = max(ended, key=lambda run: _moment(run["end_time"]))
            if last["state"]["name"] not in ("Completed", "Refused"):
                return f"the last run, {last['name']}, ended as {last['state']['name']}"
            run = Run(self.settings)
            if (seen := run.catalog.counts(run.fingerprints).seen) < len(self.dropped):
                return f"{seen} of {len(self.dropped)} photos are known"
            return "" if run.settled() else "no release was made of all photos"
        except (httpx.HTTPError, UserError, OSError, KeyError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    def _restarts(self) -> dict[str, int]:
        return {name: int(about["restarts"]) for name, about in self.service.parts().items()}

    # ---- what must hold

    def _judge(self, one: Round) -> None:
        run = Run(self.settings)
        releases = run.releases.all()
        if (numbers := [release.number for release in releases]) != list(range(1, len(numbers) + 1)):
            one.wrong.append(f"the releases' numbers are {numbers}")
        one.wrong += [f"{damage.address}: {damage.problem}" for damage in verify(run.releases)]
        known = set(releases)
        for name in run.releases.names.all():
            if (release := run.releases.current(name)) not in known:
                one.wrong.append(f"{name} points at {release}, which does not exist")
        inputs = [run.releases.card(release)["inputs"] for release in releases]
        if len(set(inputs)) < len(inputs):
            one.wrong.append("two releases were made of the same photos and settings")
        one.release = str(numbers[-1]) if numbers else "none"
        self._judge_photos(one, run)
        self._judge_runs(one)

    def _judge_photos(self, one: Round, run: Run) -> None:
        fates = run.catalog.fates(run.fingerprints)
        counts = run.catalog.counts(run.fingerprints)
        one.seen, one.kept = counts.seen, counts.kept
        if counts.seen != counts.kept + sum(counts.refused.values()):
            one.wrong.append(f"the counts do not add up: {counts}")
        if (samples := sum(row.samples for row in run.training_shards())) != counts.kept:
            one.wrong.append(f"{counts.kept} photos were kept, and {samples} are in the training's shards")
        origins = sorted(fates["origin"].to_list())
        if origins != sorted(self.dropped):
            lost, twice = set(self.dropped) - set(origins), {name for name, after in pairwise(origins) if name == after}
            one.wrong.append(f"photos lost: {sorted(lost)}, known twice: {sorted(twice)}")
        wrong = [
            row["origin"]
            for row in fates.iter_rows(named=True)
            if (row["reason"] == "not_an_image") == self.dropped.get(row["origin"])
        ]
        if wrong:
            one.wrong.append(f"pictures that were taken for none, or the reverse: {wrong}")

    def _judge_runs(self, one: Round) -> None:
        """By what Prefect knows, no two retrainings were at work at the same time."""
        runs = [run for run in self.service.retrains() if run["start_time"] and run["end_time"]]
        spans = sorted((_moment(run["start_time"]), _moment(run["end_time"]), run["name"]) for run in runs)
        for (_, ended, name), (began, _, other) in pairwise(spans):
            if began < ended:
                sentence = f"{name} and {other} ran at the same time for {ended - began:.0f} s"
                one.wrong.append(sentence)

    # ---- what the service holds

    def _memory(self) -> dict[str, float]:
        found = {name: held_mb(family(about["pid"])) for name, about in self.service.parts().items() if about["pid"]}
        supervisor = read_state(self.service.home).get("pid")
        return {"supervisor": held_mb([psutil.Process(supervisor)] if supervisor else []), **found}

    def _disk(self) -> dict[str, float]:
        home, workspace = self.service.home, self.service.workspace
        places = {"postgresql": home / "postgres", "prefect": home / "prefect", "logs": home / "logs"}
        places |= {"prometheus": home / "prometheus", "ray": self.service.ray_folder}
        found = {name: _size(place) for name, place in places.items()}
        inside = sum(size for name, size in found.items() if name != "ray")
        return {**found, "workspace": max(0.0, _size(workspace, {"ballast"}) - inside)}


def deal(kinds: Sequence[Fault], retrains: int, stream: random.Random) -> list[Fault]:
    """Each kind as often as each other, give or take one, in a random order."""
    hand: list[Fault] = []
    while len(hand) < retrains:
        hand += stream.sample(kinds, len(kinds))
    return hand[:retrains]


def main() -> None:
    """Read the command line, bring the service up, do it, write the page, take all down."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--retrains", type=int, default=20, help="each with one fault; a first one is left in peace")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of faults and moments")
    parser.add_argument("--kinds", default="", help="only these, with commas between them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for the dated page")
    parser.add_argument("--keep", action="store_true", help="leave the logs, and say where")
    options = parser.parse_args()
    # Ended in any way but by force, it takes all down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print(f"the same again: --seed {options.seed}", markup=False)
    machine = busy_machine()
    with _service() as (service, bucket, disk):
        soak, stream = Soak(service, bucket), random.Random(options.seed)
        rounds: list[Round] = []
        try:
            service.moa("up")
            kinds = faults(service, bucket, disk, stream)
            if wanted := [name.strip() for name in options.kinds.split(",") if name.strip()]:
                unknown = set(wanted) - {fault.kind for fault in kinds}
                if unknown:
                    raise SystemExit(f"{sorted(unknown)} cannot be done here: {', '.join(one.kind for one in kinds)}.")
                kinds = [fault for fault in kinds if fault.kind in wanted]
            rounds.append(_said(soak.retrain(0, None, 0.0, 0.0)))
            for number, fault in enumerate(deal(kinds, options.retrains, stream), start=1):
                at = stream.uniform(0.1, 0.8) * min(one.seconds for one in rounds)
                rounds += soak.until_hit(number, fault, at, stream.uniform(*_OUTAGE_SECONDS))
        finally:
            if options.keep:
                kept = Path(tempfile.mkdtemp(prefix="moa-soak-logs-"))
                shutil.copytree(service.home / "logs", kept, dirs_exist_ok=True)
                console.print(f"logs: {kept}", markup=False)
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                service.moa("down")
        if left := marked(service.home):
            rounds[-1].wrong.append(f"moa down left {len(left)} processes")
    creep = creeping(rounds)
    page = report(rounds, machine, commit(), options.seed, creep)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{date.today().isoformat()}-soak.md"
    path.write_text(page, "utf-8")
    console.print(f"{page}\nWritten to {path}", markup=False, highlight=False)
    if creep or any(one.wrong for one in rounds):
        raise SystemExit("Not all is as it should be.")


@contextlib.contextmanager
def _service() -> Iterator[tuple[RunningService, Bucket, SmallDisk | None]]:
    """Not up yet, on a disk of its own where one may be mounted; everything is gone afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moa-soak-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)  # the user postgres must get in
        disk: SmallDisk | None = SmallDisk(folder / "disk", _DISK_MB)
        try:
            assert disk is not None
            stack.enter_context(disk)
            disk.path.chmod(0o755)
        except MayNotMount as error:
            console.print(f"no disk runs full here: {error}", markup=False)
            disk = None
        bucket = Bucket()
        stack.callback(bucket.stop)
        stack.enter_context(patch.dict(os.environ, KEYS))
        boto3.client("s3", endpoint_url=bucket.server).create_bucket(Bucket="soak")
        more = {
            "storage.root": "s3://soak/moa",
            "storage.endpoint_url": bucket.endpoint,
            "service.again_minutes": "0.1",
            "service.again_times": "8",
            "service.ray_head_mb": str(_RAY_HEAD_MB),
        }
        service = RunningService(folder / "world", folder / "photos", folder / "disk" / "work", more, KEYS)
        stack.callback(lambda: shutil.rmtree(service.ray_folder, ignore_errors=True))
        yield service, bucket, disk


def creeping(rounds: Sequence[Round]) -> list[str]:
    """What grows from retraining to retraining by more than it may; of a few, no slope says anything."""
    found = []
    # What a retraining leaves may go beyond it, until nothing is at work and it was looked at.
    if (largest := max(one.memory.get("ray-head", 0.0) for one in rounds)) > 1.5 * _RAY_HEAD_MB:
        found.append(f"the Ray head holds {largest:.0f} MB, and is to be started anew at {_RAY_HEAD_MB:.0f}")
    if len(rounds) < _CREEP_FROM:
        return found
    for title, most, values in (
        ("memory", _MEMORY_MB, [_held_without(one, _BOUNDED) for one in rounds]),
        ("disk", _DISK_MB_EACH, [sum(one.disk.values()) for one in rounds]),
    ):
        if (slope := _slope(values)) > most:
            found.append(f"{title} grows by {slope:.1f} MB a retraining, and {most:g} are the most")
    return found


def _held_without(one: Round, parts: Collection[str]) -> float:
    return sum(held for name, held in one.memory.items() if name not in parts)


def report(rounds: Sequence[Round], machine: str, commit: str, seed: str, creep: Sequence[str]) -> str:
    """The rounds as Markdown."""
    wrong = sum(len(one.wrong) for one in rounds) + len(creep)
    rows = [
        f"| {one.number} | {one.fault} | {_when(one)} | {one.seconds:.0f} | {one.release} | {one.seen} ({one.kept}) | "
        f"{sum(one.memory.values()):.0f} | {sum(one.disk.values()):.0f} | {_seen(one)} |"
        for one in rounds
    ]
    checked = (
        f"limits: {_MEMORY_MB:g} MB of memory without {' and '.join(_BOUNDED)}, {_DISK_MB_EACH:g} MB of disk; "
        f"`service.ray_head_mb` = {_RAY_HEAD_MB:.0f}"
    )
    if len(rounds) < _CREEP_FROM:
        checked = f"no limit is checked with fewer than {_CREEP_FROM}"
    return f"""# The service retraining {rounds[-1].number} times, a fault each, {date.today().isoformat()}

{machine}. Commit {commit}. `python -m tests.faults.soak --retrains {rounds[-1].number} --seed {seed}`: `moa up`,
its store on moto's S3 server, {PHOTOS} photos dropped each time, nobody touching anything. **{wrong or "Nothing"} went
wrong**{"" if not creep else ": " + "; ".join(creep)}. After each: every release verified, names and numbers looked at,
every photo found once with its fate, Prefect's runs and the processes counted.

| # | fault | at (for) s | seconds | release | photos (kept) | memory MB | disk MB | what was seen |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Memory and disk after each, in MB, and what a retraining adds by least squares ({checked}):

{_growth("memory", [one.memory for one in rounds])}

{_growth("disk", [one.disk for one in rounds])}
"""


def _growth(title: str, held: Sequence[Mapping[str, float]]) -> str:
    names = sorted({name for one in held for name in one})
    series = {name: [one.get(name, 0.0) for one in held] for name in names}
    series["together"] = [sum(one.values()) for one in held]
    rows = [
        f"| {name} | {values[0]:.1f} | {max(values):.1f} | {values[-1]:.1f} | {_slope(values):+.2f} |"
        for name, values in series.items()
    ]
    head = f"| {title} of | after the first | most | after the last | a retraining |\n| --- | --- | --- | --- | --- |"
    return "\n".join([head, *rows])


def _slope(values: Sequence[float]) -> float:
    return statistics.linear_regression(range(len(values)), values).slope if len(values) > 1 else 0.0


def _when(one: Round) -> str:
    return "" if not one.hit else f"{one.at:.0f}" + (f" ({one.lasted:.0f})" if one.lasted else "")


def _seen(one: Round) -> str:
    runs = ", ".join(f"{one.runs.count(name)} {name}" for name in dict.fromkeys(one.runs))
    again = ", ".join(f"{name} started again" + (f" {n} times" if n > 1 else "") for name, n in one.restarts.items())
    wrong = " ".join(f"**{sentence}**" for sentence in one.wrong)
    hit = one.hit or ("" if one.fault == _PEACE else "over too early")
    return "; ".join(filter(None, (hit, f"runs: {runs}", again, wrong)))


def _said(one: Round) -> Round:
    line = f"{one.number}: {one.fault}, {one.seconds:.0f} s, release {one.release}, {_seen(one)}"
    console.print(line, markup=False, highlight=False, style="red" if one.wrong else "")
    return one


def _size(folder: Path, without: Collection[str] = ()) -> float:
    """MB on disk."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += 0 if name in without else os.lstat(os.path.join(place, name)).st_blocks * 512
    return total / 1e6


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
