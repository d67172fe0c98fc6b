"""moto's S3 server, one request at a time: `python s3_server.py PORT [BUCKET OBJECTS]`, with so many from the start.

S3 decides a conditional write atomically. moto looks first and writes then, so that two of its threads can both find
nothing there.
"""

import sys
import threading
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

_moto = DomainDispatcherApplication(create_backend_app)
_turn = threading.Lock()


def one_at_a_time(environ: Any, start_response: Any) -> list[bytes]:
    with _turn:
        return list(_moto(environ, start_response))


def fill(bucket: str, objects: int) -> None:
    """A hundred thousand requests would take minutes."""
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket(bucket, "us-east-1")
    for number in range(objects):
        backend.put_object(bucket, f"photos/{number % 100:02d}/{number:07d}.jpg", b"12")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        fill(sys.argv[2], int(sys.argv[3]))
    run_simple("127.0.0.1", int(sys.argv[1]), one_at_a_time, threaded=True, request_handler=MotoRequestHandler)
