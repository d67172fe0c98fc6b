"""Releases as they were laid out before models had names: read for ever, never written.

releases/{id}/{file}            the files; id = first 16 hex digits of the manifest's SHA-256
releases/{id}/manifest.json     {"files": {name: {"sha256", "size"}}, "lineage": the card}
releases/log/{number}.json      {"id"} of release 1, 2, 3, …
"""

import hashlib
import re
from typing import Any

from infra.large_objects import large_objects
from infra.manifest import ID_DIGITS, MANIFEST, BadManifest, Manifest, parse_json, read_old_files
from infra.references import is_id
from infra.release_names import OLD_MODEL
from infra.storage import ObjectStore

_LOG = re.compile(r"releases/log/([0-9]{8})\.json")


def old_dates(store: ObjectStore) -> dict[int, float]:
    """Number → when it was written, of each entry of the log."""
    entries = large_objects(store).entries("releases/log/")
    return {int(match[1]): entries[match[0]].written for match in map(_LOG.fullmatch, entries) if match}


def old_log_key(number: int) -> str:
    """Where the log's entry of a number lies."""
    return f"releases/log/{number:08d}.json"


def old_id(data: bytes) -> str:
    """The id in an entry of the log. Raises BadManifest."""
    entry = parse_json(data)
    if entry.keys() != {"id"} or not isinstance(entry["id"], str) or not is_id(entry["id"]):
        raise BadManifest("it names no release")
    return str(entry["id"])


def old_manifest_key(release_id: str) -> str:
    """Where the manifest lies."""
    return f"releases/{release_id}/{MANIFEST}"


def read_old_manifest(data: bytes, release_id: str) -> Manifest:
    """The manifest in these bytes, which must have the id as their digest. Raises BadManifest."""
    digest = hashlib.sha256(data).hexdigest()
    if digest[:ID_DIGITS] != release_id:
        raise BadManifest("it was altered: it does not have its digest")
    value = parse_json(data)
    if value.keys() != {"files", "lineage"} or not isinstance(value["lineage"], dict):
        raise BadManifest("it does not have the fields files and lineage")
    return Manifest(OLD_MODEL, read_old_files(value["files"]), digest, data, folder=f"releases/{release_id}")


def old_card(manifest: Manifest) -> dict[str, Any]:
    """What is known of an old release."""
    return dict(parse_json(manifest.data)["lineage"])
