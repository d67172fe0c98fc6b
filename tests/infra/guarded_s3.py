"""moto's S3 server behind the policies of `infra/policies`: `python guarded_s3.py PORT ROLES.json`, ROLES.json naming
each access key's policy files and the words to put in.

moto's own policies know neither a listing's prefix nor how much it asks for, on which ours depend.
"""

import fnmatch
import io
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

POLICIES = Path(__file__).parents[2] / "infra" / "policies"


class Asked(NamedTuple):
    """One thing that a request wants."""

    action: str
    resource: str
    values: dict[str, str]


def read_policy(role: str, words: Mapping[str, str]) -> list[dict[str, Any]]:
    """The statements of a role's file, with the words in capitals replaced."""
    text = (POLICIES / f"{role}.json").read_text("utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    return list(json.loads(text)["Statement"])


def allows(statements: Iterable[Mapping[str, Any]], asked: Asked) -> bool:
    """Whether AWS would: something allows it and nothing denies it."""
    applying = [one for one in statements if _applies(one, asked)]
    return any(one["Effect"] == "Allow" for one in applying) and not any(one["Effect"] == "Deny" for one in applying)


def _applies(statement: Mapping[str, Any], asked: Asked) -> bool:
    if set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition"}:
        raise ValueError(f"this evaluator does not know all of {sorted(statement)}")
    named = any(fnmatch.fnmatchcase(asked.action, action) for action in statement["Action"])
    meant = any(fnmatch.fnmatchcase(asked.resource, resource) for resource in statement["Resource"])
    return named and meant and all(_holds(*one, asked.values) for one in statement.get("Condition", {}).items())


def _holds(operator: str, wanted: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    for name, options in wanted.items():
        value = values.get(name)
        options = [options] if isinstance(options, str) else options
        if operator == "Null":
            if (value is None) is not (options[0] == "true"):
                return False
            continue
        if value is None:
            return False
        if operator == "StringEquals" and value not in options:
            return False
        if operator == "StringLike" and not any(fnmatch.fnmatchcase(value, option) for option in options):
            return False
        if operator == "NumericLessThanEquals" and int(value) > int(options[0]):
            return False
        if operator not in ("StringEquals", "StringLike", "NumericLessThanEquals"):
            raise ValueError(f"this evaluator does not know {operator}")
    return True


def wants(method: str, path: str, query: str, body: bytes) -> list[Asked]:
    """What a request to S3 asks for; several things where it deletes several objects."""
    bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
    asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    whole, one = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    if not key:
        if method == "POST" and "delete" in asked:
            keys = re.findall(r"<Key>([^<]+)</Key>", body.decode())
            return [Asked("s3:DeleteObject", f"{whole}/{name}", {}) for name in keys]
        if "uploads" in asked:  # of which AWS knows no prefix
            return [Asked("s3:ListBucketMultipartUploads", whole, {})]
        names = {"prefix": "s3:prefix", "max-keys": "s3:max-keys"}
        values = {name: asked[word] for word, name in names.items() if word in asked}
        actions = {"GET": "s3:ListBucket", "HEAD": "s3:ListBucket"}
        actions |= {"PUT": "s3:CreateBucket", "DELETE": "s3:DeleteBucket"}
        return [Asked(actions[method], whole, values)]
    if method == "DELETE":
        return [Asked("s3:AbortMultipartUpload" if "uploadId" in asked else "s3:DeleteObject", one, {})]
    return [Asked({"GET": "s3:GetObject", "HEAD": "s3:GetObject"}.get(method, "s3:PutObject"), one, {})]


class Guard:
    """A WSGI application that lets through what the caller's policies allow, and writes down what it refused."""

    def __init__(self, application: Any, roles: Mapping[str, Any]) -> None:
        self._application, self._turn = application, threading.Lock()
        self._roles = {
            key: [one for role in about["roles"] for one in read_policy(role, about["words"])]
            for key, about in roles.items()
        }
        self._refused: list[list[str]] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/refused":
            start_response("200 OK", [])
            return [json.dumps(self._refused).encode()]
        match = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        key = match[1] if match else ""
        if key != "root":
            body = _body(environ)
            place = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
            for asked in wants(*place, body):
                if not allows(self._roles.get(key, []), asked):
                    self._refused.append([key, asked.action, asked.resource, asked.values.get("s3:prefix", "")])
                    start_response("403 Forbidden", [("Content-Type", "application/xml")])
                    return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        with self._turn:
            return list(self._application(environ, start_response))


def _body(environ: Any) -> bytes:
    """The request's, which is put back whole: Arrow sends its in chunks and does not say how long it is."""
    if environ.pop("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        body = environ["wsgi.input"].read()
        environ["CONTENT_LENGTH"] = str(len(body))
    else:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return bytes(body)


if __name__ == "__main__":
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    guard = Guard(DomainDispatcherApplication(create_backend_app), json.loads(Path(sys.argv[2]).read_text()))
    run_simple("127.0.0.1", int(sys.argv[1]), guard, threaded=True, request_handler=MotoRequestHandler)
