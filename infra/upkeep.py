"""Looking after a registry: is every file what was published, what mends it, and what nobody needs any more."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra.blobs import GARBAGE_SECONDS
from infra.errors import UserError
from infra.large_objects import LargeObjects, Unfinished, UnreadableObject, large_objects, read_range
from infra.manifest import MANIFEST, Content, Manifest, part_spans
from infra.registry import Releases, models
from infra.release_cache import ReleaseCache
from infra.release_signatures import FOLDER, Verifier, find_signature, require_signature, signature_key, signers
from infra.storage import ObjectStore, explained

_AT_ONCE = 8
_PLACES = ("blobs/", "releases/", "names/", "probes/", FOLDER)  # in a store, what is the registry's
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """A file or a record that is not what it should be, and the releases or names that need it. content: what it should
    be, of a file."""

    address: str
    problem: str
    needed_by: tuple[str, ...]
    key: str = ""
    content: Content | None = None


@dataclass(frozen=True)
class Garbage:
    """What nobody needs: objects with their sizes, and what killed uploads left."""

    objects: dict[str, int]
    unfinished: tuple[Unfinished, ...]


def verify(
    releases: Releases,
    which: Sequence[int] | None = None,
    progress: Progress = lambda done, total: None,
    verifier: Verifier | None = None,
) -> list[Damage]:
    """Read every file of the releases with these numbers (None: of all, and the histories of all names) and say what is
    not what was published, and with a key what it did not sign. `progress` hears of bytes."""
    store, large = releases.store, large_objects(releases.store)
    needed: dict[str, tuple[Content, list[str]]] = {}
    damaged: list[Damage] = []
    with explained(store):
        for number in releases.numbers() if which is None else which:
            name = f"{releases.model}@{number}"
            try:
                manifest = releases.manifest(releases.resolve(str(number)))
            except UserError as error:
                damaged.append(Damage(f"{name}/{MANIFEST}", str(error).rstrip("."), (name,)))
                continue
            if verifier:
                damaged += _unsigned(store, manifest, verifier, name)
            for file in manifest.files:
                key = manifest.key(file)
                needed.setdefault(key, (file.content, []))[1].append(f"{name}/{file.name}")
        total, done = sum(content.size for content, _ in needed.values()), 0

        def look(item: tuple[str, tuple[Content, list[str]]]) -> str | None:
            return _problem(large, item[0], item[1][0])

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for (key, (content, wanted_by)), problem in zip(
                needed.items(), pool.map(look, needed.items()), strict=True
            ):
                done += content.size
                progress(done, total)
                if problem:
                    damaged.append(Damage(store.uri(key), problem, tuple(wanted_by), key, content))
        if which is None:
            there = releases.numbers()
            for number in sorted(set(range(1, max(there, default=0))) - set(there)):
                damaged.append(Damage(f"{releases.model}@{number}/{MANIFEST}", "it is missing", ()))
            damaged += _names_damage(releases)
    return damaged


def _unsigned(store: ObjectStore, manifest: Manifest, verifier: Verifier, name: str) -> list[Damage]:
    try:
        require_signature(find_signature(store, manifest, verifier.key_id), manifest, verifier, name)
    except UserError as error:
        return [Damage(store.uri(signature_key(manifest, verifier.key_id)), str(error).rstrip("."), (name,))]
    return []


def _problem(large: LargeObjects, key: str, content: Content) -> str | None:
    whole = hashlib.sha256()
    try:
        there = large.find(key)
        if there is None:
            return "it is missing"
        if there.size != content.size:
            return f"it has {there.size:,} bytes in place of {content.size:,}"
        for start, size in part_spans(content.size):
            whole.update(read_range(large, key, start, size, content.size) if size else b"")
    except KeyError:
        return "it is missing"
    except UnreadableObject as error:
        return f"it cannot be read: {error}"
    return None if whole.hexdigest() == content.sha256 else "its SHA-256 is another one"


def _names_damage(releases: Releases) -> list[Damage]:
    damaged = []
    for name in releases.names.all():
        try:
            for move in releases.history(name):
                releases.manifest(move.release)
        except UserError as error:
            address = f"{releases.model}@{name}"
            damaged.append(Damage(address, str(error).rstrip("."), (address,)))
    return damaged


def mend(releases: Releases, damaged: Iterable[Damage], folder: Path | None) -> list[Damage]:
    """Put back what this machine's cache or `folder`, as of a pulled release, has; what stays damaged."""
    large, cache = large_objects(releases.store), ReleaseCache()
    left = []
    with explained(releases.store):
        for one in damaged:
            source = _good_copy(one, cache, folder)
            if source is None or one.content is None:
                left.append(one)
            else:
                large.upload(one.key, source, one.content, lambda size: None)
    return left


def _good_copy(one: Damage, cache: ReleaseCache, folder: Path | None) -> Path | None:
    if one.content is None:
        return None
    if cache.has(one.content):
        return cache.path(one.content)
    for name in one.needed_by if folder else ():
        path = Path(folder or "") / name.partition("/")[2]
        if path.is_file() and path.stat().st_size == one.content.size:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == one.content.sha256:
                    return path
    return None


def find_garbage(store: ObjectStore) -> Garbage:
    """What no release of any model needs and what killed publishers left, all of it older than a day.

    A publisher relies on no object that is half as old (`infra.blobs`), so it may be at work meanwhile. Raises
    UserError where a release cannot be read: what it needs is not known then.
    """
    large = large_objects(store)
    with explained(store):
        oldest = large.clock() - GARBAGE_SECONDS
        # In this order: what is published meanwhile is needed by the releases that are read after it.
        there = {**large.entries("blobs/"), **large.entries("probes/"), **large.entries(FOLDER)}
        old = {key: one.size for key, one in there.items() if one.written < oldest}
        needed = _needed(store)
        unfinished = [one for place in _PLACES for one in large.unfinished(place) if one.begun < oldest]
    return Garbage({key: size for key, size in sorted(old.items()) if key not in needed}, tuple(unfinished))


def collect_garbage(store: ObjectStore, garbage: Garbage) -> int:
    """Delete it; the number of objects. What a publisher has written anew since it was found stays."""
    large, deleted = large_objects(store), 0
    with explained(store):
        oldest = large.clock() - GARBAGE_SECONDS
        needed = _needed(store)
        for key in garbage.objects:
            there = large.find(key)
            if there is not None and there.written < oldest and key not in needed:
                store.delete(key)
                deleted += 1
        for one in garbage.unfinished:
            large.abandon(one)
    return deleted


def _needed(store: ObjectStore) -> set[str]:
    """The keys of the releases' files and signatures."""
    needed = set()
    for manifest in _manifests(store):
        needed |= {manifest.key(file) for file in manifest.files}
        needed |= {signature_key(manifest, one) for one in signers(store, manifest)}
    return needed


def _manifests(store: ObjectStore) -> Iterable[Manifest]:
    for model in models(store):
        releases = Releases(store, model)
        for release in releases.all():
            yield releases.manifest(release)
