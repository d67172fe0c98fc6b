"""infra/proxy/nginx.conf in a real nginx before a real Prefect server: TLS, a password, and no way past it."""

import base64
import datetime
import http.server
import ipaddress
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.ports import free_ports
from tests.prometheus_server import PrometheusServer, needs_prometheus

CONFIG = Path(__file__).parents[2] / "infra" / "proxy" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not installed: apt-get install nginx-light")
PASSWORD = "correct-horse-battery"


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the headers that it was asked with."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.path}\n{self.headers}".encode())

    def log_message(self, *_: object) -> None:
        pass


class Home:
    """The proxy's two doors, and Prefect behind it."""

    def __init__(self, prefect: int, door: int, store: int, folder: Path) -> None:
        self.prefect, self.folder = prefect, folder
        self.door, self.store = f"https://127.0.0.1:{door}", f"https://127.0.0.1:{store}"
        self.context = ssl.create_default_context(cafile=str(folder / "tls.crt"))

    def ask(self, url: str, password: str = "", headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and text."""
        headers = dict(headers or {})
        if password:
            headers["Authorization"] = "Basic " + base64.b64encode(f"moa:{password}".encode()).decode()
        request = urllib.request.Request(url, headers=headers)
        context = self.context if url.startswith("https") else None
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("proxy")
    prefect, door, store = free_ports(3)
    _certificate(folder)
    line = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], capture_output=True, text=True, check=True).stdout
    (folder / "htpasswd").write_text(f"moa:{line}")
    with ExitStack() as stack:
        echo = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
        threading.Thread(target=echo.serve_forever, daemon=True).start()
        stack.callback(echo.shutdown)
        text = CONFIG.read_text("utf-8")
        for name, value in {
            "/tmp/": f"{folder}/",
            "listen 8443": f"listen 127.0.0.1:{door}",
            "listen 9443": f"listen 127.0.0.1:{store}",
            "prefect-server:4200": f"127.0.0.1:{prefect}",
            "grafana:3000": f"127.0.0.1:{echo.server_port}",
            "store:9000": f"127.0.0.1:{echo.server_port}",
            "/etc/moa/": f"{folder}/",
            "/dev/stdout": str(folder / "access.log"),
        }.items():
            assert name in text, f"the configuration has no {name}"
            text = text.replace(name, value)
        if os.getuid() == 0:
            text = f"user root;\n{text}"  # whose folder this is
        (folder / "nginx.conf").write_text(text)
        environment = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_AUTH_STRING": f"moa:{PASSWORD}",
            "PREFECT_SERVER_METRICS_ENABLED": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        (folder / "prefect").mkdir()
        server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect)]
        log = stack.enter_context((folder / "log").open("wb"))
        processes = []
        for command in (server, [str(NGINX), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]):
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            processes.append(process)
        home = Home(prefect, door, store, folder)
        deadline = time.monotonic() + 180
        while not _well(home):
            alive = all(process.poll() is None for process in processes)
            assert alive and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield home


def test_a_stranger_gets_nothing(home: Home) -> None:
    for path in ("/", "/api/health", "/api/admin/version", "/grafana/", "/api/flow_runs/filter"):
        assert home.ask(f"{home.door}{path}")[0] == 401, path
        assert home.ask(f"{home.door}{path}", "wrong")[0] == 401, path


def test_prefect_asks_as_well_for_who_comes_past_the_proxy(home: Home) -> None:
    version = f"http://127.0.0.1:{home.prefect}/api/admin/version"
    assert home.ask(version)[0] == 401 and home.ask(version, "wrong")[0] == 401
    assert home.ask(version, PASSWORD)[0] == 200


def test_with_the_password_prefect_answers_and_its_pages_are_there(home: Home) -> None:
    status, version = home.ask(f"{home.door}/api/admin/version", PASSWORD)
    assert status == 200 and re.fullmatch(r'"3\.\d+\.\d+"', version)
    status, page = home.ask(f"{home.door}/", PASSWORD)
    assert status == 200 and "<html" in page.lower()


def test_a_command_line_reaches_it_through_the_door(home: Home) -> None:
    """Prefect's client with TLS and the password, as from somebody's own machine."""
    environment = os.environ | {
        "PREFECT_API_URL": f"{home.door}/api",
        "PREFECT_API_AUTH_STRING": f"moa:{PASSWORD}",
        "PREFECT_API_SSL_CERT_FILE": str(home.folder / "tls.crt"),
        "PREFECT_HOME": str(home.folder / "client"),
    }
    command = [sys.executable, "-m", "prefect", "work-pool", "create", "moa", "--type", "process"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_plain_http_is_no_way_in(home: Home) -> None:
    assert home.ask(home.door.replace("https", "http"))[0] == 400
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(home.door, timeout=30)


def test_what_belongs_to_the_proxy_goes_no_further(home: Home) -> None:
    """Grafana does not hear the proxy's password; the store hears the signed host and its own authorisation."""
    status, heard = home.ask(f"{home.door}/grafana/d/moa", PASSWORD)
    assert status == 200 and heard.startswith("/grafana/d/moa\n") and "uthorization" not in heard
    status, heard = home.ask(f"{home.store}/moa/key", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x"})
    assert status == 200 and "AWS4-HMAC-SHA256" in heard
    assert f"Host: {home.store.removeprefix('https://')}" in heard


@needs_prometheus
def test_prometheus_reads_prefects_own_metrics(home: Home, tmp_path: Path) -> None:
    where = {"prefect": [f"127.0.0.1:{home.prefect}"]}
    with PrometheusServer(tmp_path, where, {"prefect_password": PASSWORD}) as prometheus:
        prometheus.until('up{job="prefect"} == 1', bool)
        assert prometheus.query('process_resident_memory_bytes{job="prefect"}')


def _well(home: Home) -> bool:
    try:
        return home.ask(f"{home.door}/api/health", PASSWORD)[0] == 200
    except OSError:
        return False


def _certificate(folder: Path) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)

    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(1))
        .add_extension(host, critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
