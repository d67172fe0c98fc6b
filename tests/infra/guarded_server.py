"""`guarded_s3.py` as a process, and keys for the roles."""

import json
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3


class GuardedS3:
    """An S3 server that asks the policies. Use as a context manager; `keys`: name -> (access key, secret)."""

    def __init__(self, folder: Path, roles: Mapping[str, Sequence[str]], prefix: str = "moa") -> None:
        self.folder, self.bucket, self.photos, self.prefix = folder, "moa-store", "moa-photos", prefix
        self.keys = {name: (f"AKIA{name.upper()}", secrets.token_hex(20)) for name in roles}
        words = {"BUCKET": self.bucket, "PREFIX": prefix, "PHOTOS": self.photos}
        about = {self.keys[name][0]: {"roles": list(files), "words": words} for name, files in roles.items()}
        (folder / "roles.json").write_text(json.dumps(about))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "GuardedS3":
        self._log = (self.folder / "s3.log").open("wb")
        command = [sys.executable, str(Path(__file__).with_name("guarded_s3.py")), str(self._port)]
        self._process = subprocess.Popen(
            [*command, str(self.folder / "roles.json")], stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                break
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.1)
        for bucket in (self.bucket, self.photos):
            self.root().create_bucket(Bucket=bucket)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def environment(self, name: str) -> dict[str, str]:
        """The usual AWS variables of a role."""
        access, secret = self.keys[name]
        return {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip

    def root(self) -> Any:
        """boto3's client of somebody who may do everything."""
        return boto3.client(
            "s3", endpoint_url=self.address, aws_access_key_id="root", aws_secret_access_key="root",
            region_name="us-east-1",
        )  # fmt: skip

    def refused(self) -> list[list[str]]:
        """[key, action, resource, prefix] of all that was refused."""
        with urllib.request.urlopen(f"{self.address}/refused", timeout=10) as answer:
            return list(json.load(answer))
