"""A real Prometheus in a process of its own, which asks whom a test names."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[1] / "infra" / "monitoring"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed: apt-get install prometheus",
)


class PrometheusServer:
    """With the shipped configuration and rules but for whom it asks. Use as a context manager.

    targets: job -> addresses. For a job whose addresses somebody is asked for (Ray's head), that one's URL alone.
    secrets: what stands in the files below /run/secrets.
    """

    def __init__(
        self, folder: Path, targets: Mapping[str, Sequence[str]], secrets: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self._targets, self._secrets = folder, targets, secrets or {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def __enter__(self) -> "PrometheusServer":
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        config["scrape_configs"] = [one for one in config["scrape_configs"] if one["job_name"] in self._targets]
        for job in config["scrape_configs"]:
            targets = list(self._targets[job["job_name"]])
            if "http_sd_configs" in job:
                job["http_sd_configs"][0] |= {"url": targets[0], "refresh_interval": "1s"}
            else:
                job["static_configs"] = [{"targets": targets}]
        for name, value in self._secrets.items():
            (self.folder / name).write_text(value)
        text = yaml.safe_dump(config).replace("/run/secrets", str(self.folder))
        (self.folder / "prometheus.yml").write_text(text, "utf-8")
        self._log = (self.folder / "log").open("ab")
        command = ["prometheus", f"--config.file={self.folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    def until(self, ask: str, holds: Callable[[list[dict[str, Any]]], bool], seconds: float = 120) -> list[Any]:
        """The answer to a query once it is as it should be; the last one stands in the error where it never is."""
        deadline, found = time.monotonic() + seconds, list[Any]()
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            try:
                found = self.query(ask)
            except OSError:  # it starts
                found = []
            if holds(found):
                return found
            time.sleep(0.2)
        raise AssertionError(f"{ask} is still {found}")

    def query(self, ask: str) -> list[dict[str, Any]]:
        """[{"metric": labels, "value": [time, text]}]."""
        return list(self._get(f"query?{urllib.parse.urlencode({'query': ask})}")["result"])

    def firing(self) -> set[str]:
        """The alerts that fire now."""
        return {one["labels"]["alertname"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"}

    def metadata(self) -> dict[str, Any]:
        """Every metric's name, with type and help."""
        return dict(self._get("metadata"))

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]
