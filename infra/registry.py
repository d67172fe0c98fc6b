"""Releases: immutable files under a digest, a numbered log of them, and names such as "production" that move.

    releases/{id}/{file}            the files; id = first 16 hex digits of the manifest's SHA-256
    releases/{id}/manifest.json     size and SHA-256 of each file, and the lineage; written last: without it no release
    releases/log/{number}.json      release 1, 2, 3, …
    aliases/{name}/{number}.json    each move of a name; the highest number is the present

Only "create if absent" is asked of the store, so the same code is right on a directory, AWS, Ceph and MinIO; and doing
anything twice, as after a crash, changes nothing.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError, written_by_us
from infra.storage import ObjectStore, check_key

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Release:
    number: int
    id: str


@dataclass(frozen=True)
class Move:
    """One entry of a name's history."""

    number: int
    release: Release
    why: str


class Releases:
    """The releases in one object store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def publish(self, files: Mapping[str, bytes], card: Mapping[str, Any]) -> Release:
        """Store the files and the card (JSON; its "run_id" is what `find` looks for) as a release.

        The same files and card are the same release with the same number, however often they are published.
        Raises ValueError for no files or a file called manifest.json.
        """
        if not files or MANIFEST in files:
            raise ValueError(f"a release needs files, none of them called {MANIFEST}: got {sorted(files)}")
        described = {
            check_key(name): {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in sorted(files.items())
        }
        manifest = _to_json({"files": described, "lineage": dict(card)})
        release_id = _release_id(manifest)
        if not self.store.exists(f"releases/{release_id}/{MANIFEST}"):
            for name, data in files.items():
                self.store.put(f"releases/{release_id}/{name}", data)
            self.store.create(f"releases/{release_id}/{MANIFEST}", manifest)
        return self._number(release_id)

    def all(self) -> list[Release]:
        """Every release, oldest first."""
        keys = self.store.list("releases/log/")
        return [Release(_number_in(key), str(json.loads(self.store.get(key))["id"])) for key in keys]

    def manifest(self, release: Release) -> dict[str, Any]:
        """{"files": {name: {"sha256", "size"}}, "lineage": the card}; UserError when it is not what was published."""
        key = f"releases/{release.id}/{MANIFEST}"
        data = self.store.get(key)
        if _release_id(data) != release.id:
            raise UserError(f"Release {release.id} was altered: {self.store.uri(key)} does not have its digest.")
        return dict(json.loads(data))

    def find(self, run_id: str) -> Release | None:
        """The latest release whose card has this run_id."""
        for release in reversed(self.all()):
            if self.manifest(release)["lineage"].get("run_id") == run_id:
                return release
        return None

    def promote(self, alias: str, release_id: str, why: str) -> None:
        """Let the name point at the release; nothing happens when it does already.

        Raises UserError for an unknown release, a name that is none, and when somebody else moved the name meanwhile.
        """
        if not re.fullmatch(r"[a-z][a-z0-9-]*", alias):
            raise UserError(f"{alias!r} cannot name a release: use lower-case letters, digits and hyphens.")
        release = self._by_id(release_id)
        if release is None:
            raise UserError(f"There is no release {release_id!r} to promote to {alias}: {self._choices()}.")
        history = self.history(alias)
        if history and history[-1].release == release:
            return
        number = history[-1].number + 1 if history else 1
        entry = _to_json({"id": release.id, "number": release.number, "why": why})
        # A retried request may meet its own first try, which had arrived: then the name stands where it should.
        if not self.store.create(f"aliases/{alias}/{number:08d}.json", entry) and self.current(alias) != release:
            raise UserError(f"The name {alias!r} was moved by somebody else just now: look at it and promote again.")

    def current(self, alias: str) -> Release | None:
        """Where the name points now; None when it never pointed anywhere."""
        history = self.history(alias)
        return history[-1].release if history else None

    def history(self, alias: str) -> list[Move]:
        """Every move of the name, oldest first."""
        moves = []
        for key in self.store.list(f"aliases/{alias}/"):
            entry = json.loads(self.store.get(key))
            moves.append(Move(_number_in(key), Release(int(entry["number"]), str(entry["id"])), str(entry["why"])))
        return moves

    def resolve(self, name: str) -> Release:
        """The release that an alias, a number or an id names; UserError when none does."""
        if re.fullmatch(r"[0-9]{1,8}", name):
            found = next((release for release in self.all() if release.number == int(name)), None)
        elif re.fullmatch(r"[0-9a-f]{16}", name):
            found = self._by_id(name)
        elif re.fullmatch(r"[a-z][a-z0-9-]*", name):
            found = self.current(name)
        else:
            found = None
        if found is None:
            raise UserError(f"There is no release {name!r}: {self._choices()}.")
        return found

    def pull(self, name: str, destination: Path) -> Release:
        """Write the named release's files and its manifest into a folder that is new or empty.

        Size and SHA-256 of every file are checked before the folder appears, so it is whole or absent. Raises UserError
        for an unknown name, a destination in use, a missing file and a file that is not what was published.
        """
        destination = destination.expanduser().absolute()
        if os.path.lexists(destination) and not (destination.is_dir() and not any(destination.iterdir())):
            raise UserError(f"{destination} is not an empty folder: name a new one to pull into.")
        release = self.resolve(name)
        described = self.manifest(release)["files"]
        partial = destination.with_name(f".{destination.name}.partial-{secrets.token_hex(4)}")
        with written_by_us(destination, "name another folder to pull into"):
            destination.parent.mkdir(parents=True, exist_ok=True)
            try:
                for file, expected in described.items():
                    path = partial / check_key(file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self._verified(release, file, expected))
                (partial / MANIFEST).write_bytes(self.store.get(f"releases/{release.id}/{MANIFEST}"))
                partial.replace(destination)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return release

    def read(self, release: Release, file: str) -> bytes:
        """One verified file of a release; UserError when it has none of that name or it was altered."""
        described = self.manifest(release)["files"]
        if file not in described:
            raise UserError(f"Release {release.number} has no file {file!r}: it has {', '.join(described)}.")
        return self._verified(release, file, described[file])

    def _verified(self, release: Release, file: str, expected: Mapping[str, Any]) -> bytes:
        key = f"releases/{release.id}/{file}"
        try:
            data = self.store.get(key)
        except KeyError as error:
            raise UserError(f"Release {release.number} is damaged: {self.store.uri(key)} is missing.") from error
        if len(data) != expected["size"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise UserError(f"Release {release.number} is damaged: {self.store.uri(key)} is not what was published.")
        return data

    def _number(self, release_id: str) -> Release:
        while True:
            found = self._by_id(release_id)
            if found is not None:
                return found
            number = max((release.number for release in self.all()), default=0) + 1
            # Losing the race for a number means that the log has grown: look again.
            self.store.create(f"releases/log/{number:08d}.json", _to_json({"id": release_id}))

    def _by_id(self, release_id: str) -> Release | None:
        return next((release for release in self.all() if release.id == release_id), None)

    def _choices(self) -> str:
        releases = self.all()
        aliases = sorted({key.split("/")[1] for key in self.store.list("aliases/")})
        if not releases:
            return "nothing has been published here yet"
        return f"choose {', '.join([*aliases, *(str(release.number) for release in releases)])}"


def _to_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _release_id(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:16]


def _number_in(key: str) -> int:
    return int(key.rpartition("/")[2].removesuffix(".json"))
