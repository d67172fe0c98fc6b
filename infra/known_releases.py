"""What a registry was last heard to hold, for when nobody answers there: manifests, and where its names pointed.

known/{digest of the address}/{model}/0007.json            the manifest, as it was read
known/{digest of the address}/{model}/signatures/…         its signatures, as they were read
known/{digest of the address}/{model}/names/production     number and id; its time is when it was asked
"""

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.manifest import BadManifest, Manifest, read_manifest
from infra.old_registry import read_old_manifest
from infra.references import is_id, is_name, is_number
from infra.release_names import Release


@dataclass(frozen=True)
class Known:
    """A release as it was last heard of. age: of what is known of the name, in seconds; 0 where no name was asked."""

    release: Release
    manifest: Manifest
    age: float = 0.0


class KnownReleases:
    """Of one registry."""

    def __init__(self, cache: Path, address: str) -> None:
        self._folder = cache / "known" / hashlib.sha256(address.encode()).hexdigest()[:16]

    def models(self) -> list[str]:
        """The models of which something is known."""
        return sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []

    def remember(self, model: str, which: str, release: Release, manifest: Manifest) -> None:
        """That `which` is this release. What cannot be written is not remembered."""
        said = {"number": release.number, "id": release.id}
        with suppress(OSError):
            _write(self._folder / model / f"{release.number:04d}.json", manifest.data)
            if is_name(which):
                _write(self._folder / model / "names" / which, json.dumps(said).encode())

    def remember_signature(self, model: str, manifest: Manifest, key_id: str, signature: bytes) -> None:
        """That the key vouches for the release. What cannot be written is not remembered."""
        with suppress(OSError):
            _write(self._signature(model, manifest, key_id), signature)

    def recall_signature(self, model: str, manifest: Manifest, key_id: str) -> bytes | None:
        """The key's signature of the release, unverified; None where none is known."""
        with suppress(OSError):
            return self._signature(model, manifest, key_id).read_bytes()
        return None

    def _signature(self, model: str, manifest: Manifest, key_id: str) -> Path:
        return self._folder / model / "signatures" / f"{manifest.id}-{key_id[:16]}.json"

    def recall(self, model: str, which: str) -> Known | None:
        """What is known of the release that a name, a number or an id names; None for nothing."""
        folder = self._folder / model
        with suppress(OSError, ValueError, TypeError, KeyError):
            if is_number(which):
                return self._read(folder / f"{int(which):04d}.json")
            if is_id(which):
                found = (self._read(path) for path in sorted(folder.glob("*.json")))
                return next((one for one in found if one and one.release.id == which), None)
            note = folder / "names" / which
            said = json.loads(note.read_bytes())
            known = self._read(folder / f"{int(said['number']):04d}.json")
            if known and known.release.id == said["id"]:
                return Known(known.release, known.manifest, max(time.time() - note.stat().st_mtime, 1.0))
        return None

    def _read(self, path: Path) -> Known | None:
        data = path.read_bytes()
        try:
            manifest = read_manifest(data)
        except BadManifest:
            try:
                manifest = read_old_manifest(data, hashlib.sha256(data).hexdigest()[:16])
            except BadManifest:
                return None
        return Known(Release(int(path.stem), manifest.id), manifest)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    partial.write_bytes(data)
    os.replace(partial, path)
