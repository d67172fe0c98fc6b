"""moto's S3 server, one request at a time: `python s3_server.py PORT`.

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


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), one_at_a_time, threaded=True, request_handler=MotoRequestHandler)
