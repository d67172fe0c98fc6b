"""`moa up` for tests: the whole service on tiny models, in a workspace of its own, with ports of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from infra.ports import free_ports
from infra.service import read_state
from infra.settings import Settings, load_settings
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from tests.tiny_world import PIXELS, tiny_changes, write_models, write_people

REPOSITORY = Path(__file__).parents[1]
_PORTS = ("prefect_port", "postgres_port", "ray_port", "ray_dashboard_port", "metrics_port", "scrape_port")


class RunningService:
    """`world`: where models and people lie. `photos`: the watched folder. `more`: settings beside the tiny ones."""

    def __init__(
        self,
        world: Path,
        photos: Path,
        workspace: Path,
        more: Mapping[str, str],
        environment: Mapping[str, str],
    ) -> None:
        self.photos, self.workspace, self._environment = photos, workspace, dict(environment)
        write_models(world / "models")
        write_people(world / "celeba")
        photos.mkdir(parents=True, exist_ok=True)
        self.changes = {
            **tiny_changes(world),
            "ingest.source": f"folder:{photos}",
            "ray.object_store_mb": "80",
            "service.quiet_seconds": "2",
            "service.look_seconds": "0.5",
            **{f"service.{name}": str(port) for name, port in zip(_PORTS, free_ports(len(_PORTS)), strict=True)},
            **more,
        }

    @cached_property
    def settings(self) -> Settings:
        return load_settings("demo", self.workspace, self.changes)

    @property
    def home(self) -> Path:
        return self.settings.service_home

    @property
    def ray_folder(self) -> Path:
        """Where its Ray keeps its sessions; there once the service was up."""
        return Path(json.loads((self.home / "ray-folder.json").read_text("utf-8")))

    def moa(self, command: str, *more: str) -> Any:
        """A command's answer as JSON."""
        options = [part for key, value in self.changes.items() for part in ("--set", f"{key}={value}")]
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", command, *more, "--json", "--workspace", str(self.workspace), *options],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | self._environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.logs()
        return json.loads(done.stdout)

    def parts(self) -> dict[str, dict[str, Any]]:
        """What the supervisor says of each part: state, pid, restarts."""
        return dict(read_state(self.home).get("parts", {}))

    def drop(self, numbers: Collection[int], broken: Collection[int] = ()) -> list[str]:
        """Photos into the watched folder, some of them no pictures; their names. Each appears whole."""
        names = []
        for number in numbers:
            partial, name = self.photos / f".{number:05d}", f"{number:05d}.png"
            if number in broken:
                partial.write_bytes(b"no picture %d" % number)
            else:
                draw(picture_at(0, number), PIXELS).image.save(partial, format="PNG")
            partial.rename(self.photos / name)
            names.append(name)
        return names

    def ask(self, path: str, body: Any = None) -> Any:
        """Prefect's answer. Raises httpx.HTTPError where it gives none."""
        address = f"http://127.0.0.1:{self.settings.service.prefect_port}/api/{path}"
        answer = httpx.post(address, json=body, timeout=30) if body is not None else httpx.get(address, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def retrains(self, states: Collection[str] = ()) -> list[dict[str, Any]]:
        """The runs of the deployed retraining that are due or were, in order of their time; those in these states."""
        found, wanted = [], {"deployments": {"name": {"any_": [self.settings.publish.model]}}}
        while True:  # a server gives 200 at a time
            body = {**wanted, "flows": {"name": {"any_": ["retrain"]}}, "sort": "EXPECTED_START_TIME_ASC"}
            page = self.ask("flow_runs/filter", {**body, "limit": 200, "offset": len(found)})
            found += page
            if len(page) < 200:
                break
        # What a schedule will start is the future's.
        runs = [run for run in found if not (run["auto_scheduled"] and run["state"]["name"] == "Scheduled")]
        return [run for run in runs if not states or run["state"]["type"] in states]

    def until(self, found: Callable[[], Any], seconds: float = 600.0) -> Any:
        """The first true answer; a Prefect server that is away has none."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := found():
                    return value
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.5)

    def logs(self) -> str:
        """The end of each part's."""
        logs = sorted((self.home / "logs").glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text('utf-8', 'replace')[-3000:]}" for path in logs)
