"""Releases from a registry onto this machine: verified, cached, whole or not at all. No torch, Ray or Prefect.

from infra.pulling import pull

adapter = MoAAdapter.from_pretrained(pull("s3://bucket/prefix/moa@production"))
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError, UserNotice, written_by_us
from infra.known_releases import Known, KnownReleases
from infra.large_objects import large_objects
from infra.manifest import MANIFEST, MAX_BYTES, BadManifest, Manifest, parse_json
from infra.references import PRODUCTION, parse_reference, split_address
from infra.registry import Releases, open_releases
from infra.release_cache import ReleaseCache, Wanted
from infra.release_folder import alone, differs, put_signature, strangers, write_folder
from infra.release_names import Release
from infra.release_signatures import Verifier, find_signature, require_signature
from infra.storage import DirectoryStore, ObjectStore, S3Store, StoreUnreachable, explained, open_store

_ATTEMPTS = 3  # at the small requests: who is offline should not wait for long
Progress = Callable[[int, int], None]
"""Called with the bytes that have come and the bytes to come in all."""


@dataclass(frozen=True)
class Pulled:
    """What a pull came to. fetched: bytes of files that were not on this machine. signed: by the key that was named."""

    model: str
    release: Release
    folder: Path
    fetched: int
    signed: bool


def pull(
    reference: str,
    directory: str | Path | None = None,
    *,
    endpoint_url: str | None = None,
    key: str | Path | None = None,
    update: bool = False,
    offline: bool = False,
    progress: Progress = lambda done, total: None,
) -> Path:
    """The folder of a release, as "s3://bucket/prefix/moa@production" or "runs/demo/store/moa@7" names it.

    directory: a new or empty folder, or one that holds the release already; None: one of the cache's own. With `update`
    one that holds another release, or a changed one, is exchanged in one step. endpoint_url: of an S3 server that is
    not AWS's. key: the public key that must have signed it. offline: ask nobody; without it what is known is taken
    where nobody answers, with a notice if it is where a name pointed. Raises UserError, and leaves the folder as it
    was, where any file is not what was published or signed.
    """
    if not reference.isprintable():
        raise UserError(f"{reference[:200]!r} is no address: it has characters that cannot be printed.")
    root, text = split_address(reference)
    if not root:
        raise UserError(f"{reference[:200]!r} says no registry: write s3://bucket/prefix/{text} or FOLDER/{text}.")
    store = open_store(root, endpoint_url, _ATTEMPTS)
    done = pull_from(store, text, "", directory, key=key, update=update, offline=offline, progress=progress)
    return done.folder


def pull_release(releases: Releases, which: str, directory: Path) -> Release:
    """The release of that name, number or id, in the folder."""
    key = releases.verifier.path if releases.verifier else None
    return pull_from(releases.store, f"{releases.model}@{which}", "", directory, key=key).release


def pull_from(
    store: ObjectStore,
    reference: str,
    model: str,
    directory: str | Path | None,
    *,
    key: str | Path | None = None,
    update: bool = False,
    offline: bool = False,
    progress: Progress = lambda done, total: None,
) -> Pulled:
    """As `pull`, of a store. model: the one that is meant where the reference names none and there are several."""
    cache, verifier = ReleaseCache(), Verifier(key) if key else None
    known = KnownReleases(cache.root, _address(store))
    model, release, manifest, asked = _resolve(store, reference, model, known, offline)
    signature = _signature(store if asked else None, known, model, manifest, verifier)
    if verifier:
        require_signature(signature, manifest, verifier, f"{model}@{release.number}")
    if directory is None:
        folder = cache.root / "folders" / f"{model}-{release.number:04d}-{release.id}"
    else:
        folder = Path(os.path.realpath(Path(directory).expanduser()))
    with (
        alone(cache, folder, wait=directory is None),
        written_by_us(folder, "name another folder to pull into, or make room there"),
    ):
        there = os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir()))
        if there and _holds(folder, manifest, cache, release, model, update or directory is None):
            if verifier and signature is not None:
                put_signature(folder, signature)
            return Pulled(model, release, folder, 0, verifier is not None)
        fetched = _fetch(store, manifest, cache, progress)
        write_folder(folder, manifest, cache, there, signature)
    return Pulled(model, release, folder, fetched, verifier is not None)


def _resolve(
    store: ObjectStore, reference: str, model: str, known: KnownReleases, offline: bool
) -> tuple[str, Release, Manifest, bool]:
    """The model, the release, its manifest, and whether the store was asked for them."""
    asked = parse_reference(reference)
    try:
        if offline:
            raise StoreUnreachable(f"{_address(store)} was not asked.")
        if isinstance(store, DirectoryStore) and not store.root.is_dir():
            raise StoreUnreachable(f"There is no {store.root}, so nothing has been published there.")
        with explained(store):
            releases, which = open_releases(store, reference, model)
            release = releases.resolve(which)
            manifest = releases.manifest(release)
        known.remember(releases.model, which, release, manifest)
        return releases.model, release, manifest, True
    except StoreUnreachable as error:
        there = known.models()
        of = asked.model or (there[0] if len(there) == 1 else model)
        found = known.recall(of, asked.which) if of else None
        if found is None and asked.word and asked.which in there:
            found, of = known.recall(asked.which, PRODUCTION), asked.which
        if found is None:
            raise UserError(f"{str(error).rstrip('.')}, and {reference} was never pulled here.") from error
        _say_age(found, of, asked.which, _address(store))
        return of, found.release, found.manifest, False


def _signature(
    store: ObjectStore | None, known: KnownReleases, model: str, manifest: Manifest, verifier: Verifier | None
) -> bytes | None:
    """The key's signature, or without a key any; unverified. store: None where only what is known counts."""
    key_id = verifier.key_id if verifier else ""
    if store is None:
        return known.recall_signature(model, manifest, key_id)
    with explained(store):
        found = find_signature(store, manifest, key_id)
    if found is not None:
        known.remember_signature(model, manifest, key_id, found)
    return found


def _say_age(found: Known, model: str, which: str, address: str) -> None:
    if found.age:
        number = found.release.number
        said = f"{address} cannot be asked: release {number} of {model} was {which} {_ago(found.age)} ago."
        warnings.warn(UserNotice(said), stacklevel=5)


def _holds(folder: Path, manifest: Manifest, cache: ReleaseCache, release: Release, model: str, update: bool) -> bool:
    """Whether the folder, which is not empty, is the release; UserError where it is not and may not be exchanged."""
    if not folder.is_dir() or not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not an empty folder: name a new one to pull into.")
    how = differs(folder, manifest, cache)
    if how is None:
        return True
    if not update:
        raise UserError(
            f"{folder} is not an empty folder and holds {how}: name a new one, or add --update to put release "
            f"{release.number} of {model} in its place."
        )
    if more := [name for name in strangers(folder, manifest) if not _of_some_release(folder, name)]:
        raise UserError(f"{folder} holds {more[0]}, which is no release's and would be lost: move it first.")
    return False


def _of_some_release(folder: Path, name: str) -> bool:
    """Whether the manifest that is there lists the file."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            files = parse_json(file.read(MAX_BYTES + 1)).get("files")
    except BadManifest:
        return False
    return isinstance(files, dict) and name in files


def _fetch(store: ObjectStore, manifest: Manifest, cache: ReleaseCache, progress: Progress) -> int:
    """Bring the files that are not here; how many bytes these have."""
    distinct = {file.content.sha256: file for file in manifest.files}
    total, done = sum(file.content.size for file in distinct.values() if not cache.has(file.content)), 0

    def fetched(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    wanted = [
        Wanted(manifest.key(file), file.content, f"{store.uri(manifest.key(file))} ({file.name})")
        for file in distinct.values()
    ]
    with explained(store):
        cache.fetch(large_objects(store), wanted, fetched)
    return total


def _address(store: ObjectStore) -> str:
    """Names the store among all."""
    if isinstance(store, S3Store):
        return f"s3://{store.bucket}/{store.prefix} on {store.server}"
    assert isinstance(store, DirectoryStore)
    return str(store.root)


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
