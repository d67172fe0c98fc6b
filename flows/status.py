"""`moa status`: what runs, what waits, what failed last, what is in production and since when. In two seconds.

Prefect is asked by its HTTP interface: importing its client alone takes longer than all of this. Where no server
answers, the store and the registry tell what they know.
"""

import base64
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from flows.prefect_api import server_address
from infra import service as processes
from infra.errors import UserError
from infra.registry import Releases
from infra.settings import Settings
from infra.storage import open_store

_SECONDS = 1.5  # for each question; they are asked side by side
_SHOWN = 5
_GOING = ["RUNNING", "CANCELLING", "PAUSED"]
_WAITING = ["SCHEDULED", "PENDING"]
_FAILED = ["FAILED", "CRASHED"]
_SILENT_SECONDS = 120.0  # after which a watcher that said nothing counts as dead


def read_status(settings: Settings) -> dict[str, Any]:
    """{"server", "service", "running", "waiting", "failures", "production", "releases", "watcher"}; starts nothing."""
    with ThreadPoolExecutor(4) as pool:
        questions = {
            "running": pool.submit(_runs, settings, _GOING, "START_TIME_DESC"),
            "waiting": pool.submit(_runs, settings, _WAITING, "EXPECTED_START_TIME_ASC"),
            "failures": pool.submit(_runs, settings, _FAILED, "END_TIME_DESC"),
        }
        registry = pool.submit(_registry, settings)
        found: dict[str, Any] = {"server": {"address": server_address(settings), "reachable": True, "says": "answers"}}
        for name, asked in questions.items():
            try:
                found[name] = asked.result()
            except (OSError, ValueError, KeyError) as error:
                says = (
                    f"No Prefect server answers at {server_address(settings)} ({error}): what follows is the store's."
                )
                found["server"] |= {"reachable": False, "says": says}
                found[name] = []
        found |= registry.result()
    found["waiting"] = _next_of_each(found["waiting"])
    return found | {"service": _service(settings), "watcher": _watcher(settings)}


def _runs(settings: Settings, states: list[str], sort: str) -> list[dict[str, Any]]:
    wanted = {
        "flow_runs": {"state": {"type": {"any_": states}}, "tags": {"all_": [f"moa-model-{settings.publish.model}"]}},
        "sort": sort,
        "limit": 100 if states == _WAITING else _SHOWN,
    }
    return [
        {
            "run": run["name"],
            "deployment": run["deployment_id"],
            "state": run["state"]["name"],
            "since": run["state"]["timestamp"],
            "due": run["expected_start_time"],
            "says": run["state"]["message"] or "",
            "flow": _flow_name(settings, run["flow_id"]),
            "page": f"{server_address(settings).removesuffix('/api')}/runs/flow-run/{run['id']}",
        }
        for run in _ask(settings, "flow_runs/filter", wanted)
    ]


def _flow_name(settings: Settings, flow_id: str, known: dict[str, str] = {}) -> str:  # noqa: B006  # a cache
    if flow_id not in known:
        known[flow_id] = str(_ask(settings, f"flows/{flow_id}")["name"])
    return known[flow_id]


def _ask(settings: Settings, path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{server_address(settings)}/{path}", data, headers, method="GET" if body is None else "POST")
    with urlopen(request, timeout=_SECONDS) as answer:
        return json.load(answer)


def _next_of_each(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What waits for a slot or a worker, and of what a schedule will start only the next."""
    seen: set[str] = set()
    shown = []
    for run in runs:
        scheduled = run["state"] == "Scheduled" and datetime.fromisoformat(run["due"]) > datetime.now(UTC)
        if scheduled and run["deployment"] in seen:
            continue
        if scheduled:
            seen.add(run["deployment"])
        shown.append(run)
    return shown


def _registry(settings: Settings) -> dict[str, Any]:
    """What is in production, and the newest release. A store that cannot be read is said, and no reason to end."""
    alias = settings.publish.alias
    try:
        releases = Releases(open_store(settings.store_root, settings.storage.endpoint_url, 1), settings.publish.model)
        numbers, history = releases.numbers(), releases.history(alias)
        production: dict[str, Any] | None = None
        if history:
            move = history[-1]
            production = {"name": alias, "release": move.release.number, "id": move.release.id}
            production |= {"since": move.when, "by": move.who, "why": move.why}
        newest = None
        if numbers:
            release = releases.resolve(str(max(numbers)))
            verdict = releases.card(release).get("verdict") or {}
            newest = {
                "release": release.number,
                "promote": verdict.get("promote"),
                "reasons": verdict.get("reasons", []),
            }
        return {"production": production, "releases": len(numbers), "newest": newest, "store": settings.store_root}
    except UserError as error:
        return {"production": None, "releases": None, "newest": None, "store": str(error)}


def _service(settings: Settings) -> dict[str, Any]:
    """What `moa up` started here."""
    home = settings.service_home
    state = processes.read_state(home)
    up = processes.is_up(home)
    parts = {
        name: {key: about[key] for key in ("state", "pid", "since", "restarts", "says")}
        for name, about in state.get("parts", {}).items()
        if about["state"] != "done"
    }
    return {"up": up, "home": str(home), "parts": parts if up else {}}


def _watcher(settings: Settings) -> dict[str, Any] | None:
    """What the watcher last saw; None where there never was one."""
    beat: Path = settings.watch_folder / "beat.json"
    try:
        about = dict(json.loads(beat.read_text("utf-8")))
    except (OSError, ValueError):
        return None
    silent = time.time() - about["time"]
    alive = silent < max(_SILENT_SECONDS, 3 * settings.service.look_seconds)
    return {"place": about["place"], "objects": about["objects"], "looked": about["time"], "alive": alive}


def show_status(found: dict[str, Any]) -> None:
    """For people."""
    import typer

    from flows.answers import show_table

    if not found["server"]["reachable"]:
        typer.echo(found["server"]["says"])
    production = found["production"]
    if production:
        at = _when(production["since"])
        which = f"{production['name']}: release {production['release']} ({production['id']})"
        typer.echo(f"{which} since {at}, by {production['by']}: {production['why']}")
    else:
        typer.echo("production: nothing yet" if found["releases"] is not None else found["store"])
    newest = found["newest"]
    if newest and production and newest["release"] != production["release"] and newest["promote"] is False:
        typer.echo(f"newest: release {newest['release']}, which the gate refused: {' '.join(newest['reasons'][:1])}")
    if watcher := found["watcher"]:
        looked = datetime.fromtimestamp(watcher["looked"], UTC).isoformat(timespec="seconds")
        state = "looked" if watcher["alive"] else "not running; it last looked"
        typer.echo(f"watcher: {watcher['objects']:,} objects in {watcher['place']}, {state} at {_when(looked)}")
    for title, name in (("Running", "running"), ("Waiting", "waiting"), ("Last failures", "failures")):
        if found[name]:
            typer.echo(f"{title}:")
        for run in found[name]:
            says = f": {run['says']}" if run["says"] else ""
            typer.echo(f"  {_when(_time_of(run))}  {run['flow']} {run['run']}  {run['state']}{says}")
    if found["server"]["reachable"] and not found["running"]:
        typer.echo("Nothing runs.")
    service = found["service"]
    if service["up"]:
        parts = [{"part": name, **about} for name, about in service["parts"].items()]
        show_table("Service", parts, ("part", "state", "pid", "restarts", "says"))


def _time_of(run: dict[str, Any]) -> str:
    return str(run["due"] if run["state"] in ("Scheduled", "AwaitingConcurrencySlot", "Late") else run["since"])


def _when(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
