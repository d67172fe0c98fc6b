"""A real HTTP listener that keeps what is posted to it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Heard:
    """What was posted, the first one first."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[dict[str, Any]] = []

    def texts(self) -> list[str]:
        """The sentences for people."""
        return [str(one["text"]) for one in self.messages]


@contextmanager
def listening() -> Iterator[Heard]:
    """A listener on a free port of 127.0.0.1 for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        heard = Heard(f"http://127.0.0.1:{server.server_address[1]}/hook")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            server.shutdown()
