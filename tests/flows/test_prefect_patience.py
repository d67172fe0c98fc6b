"""Prefect's client with a server that is not there yet."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.prefect_patience import patient_clients
from infra.ports import free_ports


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(True).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    (port,) = free_ports(1)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        yield port


def test_a_new_client_waits_for_a_server_that_is_started_anew(port: int) -> None:
    with get_client(sync_client=True) as client, pytest.raises(httpx.ConnectError):
        client._client.get("/health")  # Prefect's own way: at once
    servers: list[HTTPServer] = []

    def come_up() -> None:
        time.sleep(1)
        servers.append(HTTPServer(("127.0.0.1", port), _Healthy))
        servers[0].serve_forever()

    thread = threading.Thread(target=come_up)
    thread.start()
    try:
        with patient_clients(), get_client(sync_client=True) as client:
            assert client._client.get("/health").json() is True
    finally:
        while not servers:
            time.sleep(0.05)
        servers[0].shutdown()
        servers[0].server_close()
        thread.join()
    with get_client(sync_client=True) as client, pytest.raises(httpx.ConnectError):
        client._client.get("/health")  # and so it is again
