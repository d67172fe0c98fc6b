"""A proxy before the S3 server that misbehaves on request, and remembers what it was asked for."""

import base64
import hashlib
import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "ended": (404, "NoSuchUpload"),
}


class FaultyS3(ThreadingHTTPServer):
    """`faults`: part of a path -> what happens to each request of it in turn; the last one stays, "" is no fault.

    "500", "503", "expired", "denied", "skewed", "ended": that answer. "reset": no answer. "lost": it is done, none.
    "short": the connection ends in the middle of the body. "less": the server says that half is all. "drip": a byte now
    and then. "changed": another etag. "more": the whole object whatever range was asked for. With `last_write` set to
    n, the n-th write is done and then nobody is answered any more: to the store that is a client that was killed there.

    `unreliable`: a stream of random numbers and the share of all requests, of any kind, that are answered with 500,
    half of them after they were carried out.

    A body that is not what its `x-amz-checksum-sha256` says is refused, as by AWS; `checked` counts those that were
    looked at, `unsigned` those whose signature does not cover the body.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.faults: dict[str, list[str]] = {}
        self.unreliable: tuple[random.Random, float] | None = None
        self.failed = 0  # requests that were answered with 500 at random
        self.asked: list[str] = []
        self.checked = self.unsigned = 0
        self.turn, self.writes = threading.Lock(), 0
        self.last_write: int | None = None  # after which nobody is answered any more

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, part: str = "") -> list[str]:
        """The objects that were fetched, listings left out."""
        return [path for path in self.asked if part in path and "list-type" not in path]

    def fault(self, path: str) -> str:
        for part, faults in self.faults.items():
            if part in path:
                return faults.pop(0) if len(faults) > 1 else faults[0]
        return ""


@contextmanager
def faulty_s3(upstream: str) -> Iterator[FaultyS3]:
    server = FaultyS3(upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def do_GET(self) -> None:
        sent = self._body()
        if self._fails_at_random(sent):
            return
        path = unquote(self.path)
        self.server.asked.append(path)
        fault = self.server.fault(path)
        server, writes = self.server, self.command in ("PUT", "POST", "DELETE")
        with server.turn:
            dead = server.last_write is not None and server.writes >= server.last_write
            server.writes += writes and not dead
            dies = not dead and server.writes == server.last_write
        if fault == "reset" or dead:
            self.close_connection = True
            return
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            self._answer(status, {}, _error(code, fault))
            return
        if not self._is_as_its_sum_says(sent):
            self._answer(400, {}, _error("BadDigest", "another SHA-256"))
            return
        headers = dict(self.headers)
        if fault == "more":
            headers.pop("Range", None)
        status, answered, body = self._ask(headers, sent)
        if fault == "lost" or (dies and writes):
            self.close_connection = True
            return
        if fault == "changed":
            answered["ETag"] = '"another"'
        self._answer(status, answered, body, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _body(self) -> bytes:
        """Transfer in chunks, as pyarrow's client sends it, becomes one with a length."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        del self.headers["Transfer-Encoding"]
        chunks = list[bytes]()
        while length := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _is_as_its_sum_says(self, body: bytes) -> bool:
        given = self.headers.get("x-amz-checksum-sha256")
        with self.server.turn:
            self.server.checked += given is not None
            self.server.unsigned += self.headers.get("x-amz-content-sha256") == "UNSIGNED-PAYLOAD"
        return given is None or base64.b64decode(given) == hashlib.sha256(body).digest()

    def _fails_at_random(self, body: bytes) -> bool:
        if self.server.unreliable is None:
            return False
        stream, share = self.server.unreliable
        drawn = stream.random()
        if drawn >= share:
            return False
        if drawn < share / 2:
            self._ask(dict(self.headers), body)
        self.server.failed += 1
        self._answer(500, {}, _error("InternalError", "at random"))
        return True

    def _ask(self, headers: dict[str, str], sent: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        connection.request(self.command, self.path, body=sent or None, headers=headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), body

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str = "") -> None:
        sent = body[: len(body) // 2] if fault in ("less", "short") else body
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(sent))
        self.send_header("Content-Length", str(len(body)) if fault == "short" else length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "drip":
            for place in range(len(sent)):
                self.wfile.write(sent[place : place + 1])
                time.sleep(0.05)
        else:
            self.wfile.write(sent)
        if fault == "short":
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError):  # whoever asked had enough
            pass


def _error(code: str, message: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
