"""Releases of a model: immutable, numbered, their files content-addressed; names such as "production" that move.

    blobs/sha256/ab/abcd…                 files, each once however many releases have it
    releases/{model}/0007/manifest.json   which files release 7 has; written last and only if absent: it is the release
    names/{model}/{name}/0003.json        each move of a name (`infra.release_names`)
    signatures/{manifest's SHA-256}/…     who vouches for a release (`infra.release_signatures`)

Only "create if absent" is asked of the store, so the same code is right on a directory, AWS, Ceph and MinIO; and doing
anything twice, as after a crash, changes nothing. What was published before models had names (`infra.old_registry`) is
read as releases of the model "moa", whose numbers go on from there.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from infra.blobs import Progress, describe, ensure_blobs, silent
from infra.errors import UserError
from infra.large_objects import UnreadableObject, large_objects, read_range
from infra.manifest import (
    MANIFEST,
    MAX_BYTES,
    BadManifest,
    Manifest,
    ReleaseFile,
    describe_name,
    make_manifest,
    parse_json,
    read_manifest,
    to_json,
)
from infra.old_registry import old_card, old_dates, old_id, old_log_key, old_manifest_key, read_old_manifest
from infra.references import PRODUCTION, check_name, is_id, is_number, parse_reference
from infra.release_names import OLD_MODEL, Move, Names, Release
from infra.release_signatures import Signer, Verifier, find_signature, require_signature, signature_key
from infra.storage import ObjectStore, TooLarge, explained

__all__ = ["OLD_MODEL", "Move", "Release", "Releases", "models", "open_releases"]

LINEAGE = "lineage.json"
_MANIFEST = re.compile(r"(?P<model>[a-z][a-z0-9-]*)/(?P<number>[0-9]{4,8})/manifest\.json")
_READERS = 16
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _explained(method: _Method) -> _Method:
    """What the store refuses is one sentence."""

    @wraps(method)
    def explaining(self: "Releases", *arguments: Any, **named: Any) -> Any:
        with explained(self.store):
            return method(self, *arguments, **named)

    return cast(_Method, explaining)


def models(store: ObjectStore) -> list[str]:
    """The models of which there are releases, sorted."""
    with explained(store):
        keys = store.list("releases/")
    found = {match["model"] for key in keys if (match := _MANIFEST.fullmatch(key.removeprefix("releases/")))}
    return sorted(found | ({OLD_MODEL} if any(key.startswith("releases/log/") for key in keys) else set()))


def open_releases(store: ObjectStore, reference: str, model: str = "") -> tuple["Releases", str]:
    """The model's releases that a reference means, and the name, number or id of one of them.

    model: the one that is meant where the reference names none and there are several. Raises UserError for what is no
    reference, and for a word that is both a model and a name.
    """
    asked = parse_reference(reference)
    if asked.model:
        return Releases(store, asked.model), asked.which
    there = models(store)
    own = there[0] if len(there) == 1 else model
    called = asked.word and asked.which in there
    if called and own and Releases(store, own).current(asked.which):
        raise UserError(
            f"{asked.which!r} is a model and one of {own}'s names: write {asked.which}@{PRODUCTION} or "
            f"{own}@{asked.which}."
        )
    if called:
        return Releases(store, asked.which), PRODUCTION
    if not own and not there:
        raise UserError(f"There is no release {asked.which!r}: nothing has been published here yet.")
    if there and own not in there:
        choices = ", ".join(f"{one}@{asked.which}" for one in there)
        raise UserError(f"{asked.which!r} does not say which model is meant: {choices}.")
    return Releases(store, own), asked.which


class Releases:
    """The releases of one model in one object store. verifier: whose signature a file must have to be read."""

    def __init__(self, store: ObjectStore, model: str = OLD_MODEL, verifier: Verifier | None = None) -> None:
        self.store, self.model, self.verifier = store, check_name(model, "model"), verifier
        self.names = Names(store, model)
        self._known: dict[int, Manifest] = {}  # a release never changes
        self._cards: dict[str, dict[str, Any]] = {}

    # ---- publishing

    @_explained
    def publish(
        self,
        files: Mapping[str, bytes | Path],
        card: Mapping[str, Any],
        say: Callable[[str], None] = lambda sentence: None,
        progress: Progress = silent,
        signer: Signer | None = None,
    ) -> Release:
        """Make a release of the files and of the card (JSON, kept as lineage.json; `find` looks for its "run_id").

        The same files and card are the same release with the same number, however often and by how many they are
        published; what of its files is missing in the store is put back. `say` hears that this was so, and that
        somebody else has taken a number meanwhile. signer: the key that vouches for it. Raises ValueError for names
        that no release can have.
        """
        if not files or {MANIFEST, LINEAGE} & files.keys():
            raise ValueError(f"a release needs files, none called {MANIFEST} or {LINEAGE}: got {sorted(files)}")
        contents = {**files, LINEAGE: to_json(card)}
        described = describe(contents)
        manifest = make_manifest(self.model, [describe_name(name, one) for name, one in described.items()])
        large = large_objects(self.store)
        large.require_creates_once(f"probes/{secrets.token_hex(8)}")
        releases = self.all()
        needed = {file.content.sha256 for one in releases for file in self.manifest(one).files}
        by_digest = {one.sha256: (one, contents[name]) for name, one in described.items()}
        ensure_blobs(self.store, by_digest.values(), needed, progress)
        if signer:  # anew, so that it is young: the manifest that needs it comes next
            self.store.put(signature_key(manifest, signer.key_id), signer.sign(manifest))
        release = self._numbered(manifest, releases, say)
        # A `gc` that looked before the manifest was there may have taken what nobody seemed to need.
        ensure_blobs(self.store, by_digest.values(), by_digest.keys())
        if signer and find_signature(self.store, manifest, signer.key_id) is None:
            self.sign(release, signer)
        return release

    @_explained
    def sign(self, release: Release, signer: Signer) -> None:
        """Let the key vouch for a release, in the place of an earlier signature of the same key."""
        manifest = self.manifest(release)
        self.store.put(signature_key(manifest, signer.key_id), signer.sign(manifest))

    def _numbered(self, manifest: Manifest, releases: list[Release], say: Callable[[str], None]) -> Release:
        for release in releases:
            if release.id == manifest.id:
                say(f"The same content is release {release.number} of {self.model} already.")
                return release
        first = number = max((release.number for release in releases), default=0) + 1
        while not self.store.create(self._key(number), manifest.data):
            if self._read(number).id == manifest.id:  # another publisher's, or our own try whose answer was lost
                say(f"The same content was published as release {number} of {self.model} meanwhile.")
                return Release(number, manifest.id)
            number += 1
        if number > first:
            say(f"Somebody else published release {first} of {self.model} meanwhile: this one is release {number}.")
        self._known[number] = manifest
        return Release(number, manifest.id)

    # ---- reading

    @_explained
    def all(self) -> list[Release]:
        """Every release, oldest first. UserError where the manifest of one cannot be used."""
        with ThreadPoolExecutor(_READERS) as pool:
            numbers = self.numbers()
            return [Release(number, one.id) for number, one in zip(numbers, pool.map(self._read, numbers), strict=True)]

    def numbers(self) -> list[int]:
        """Every release's number, ascending; nothing is read."""
        return sorted(self.dates())

    @_explained
    def dates(self) -> dict[int, float]:
        """Number → when the release was made, by the store's clock, in seconds since 1970."""
        entries = large_objects(self.store).entries(f"releases/{self.model}/")
        found = {number: entries[key].written for key in entries if (number := self._number(key))}
        return {**(old_dates(self.store) if self.model == OLD_MODEL else {}), **found}

    @_explained
    def manifest(self, release: Release) -> Manifest:
        """Its files. UserError where the release is gone, damaged, of a format not known here, or another one."""
        manifest = self._read(release.number)
        if manifest.id != release.id:
            raise UserError(
                f"Release {release.number} of {self.model} was altered: {self.uri(release)} is not the manifest of "
                f"{release.id}."
            )
        return manifest

    @_explained
    def card(self, release: Release) -> dict[str, Any]:
        """What is known of a release: its lineage, and its metrics and verdict where it has them."""
        manifest = self.manifest(release)
        if release.id not in self._cards:
            self._cards[release.id] = old_card(manifest) if manifest.folder else self._card(release, manifest)
        return dict(self._cards[release.id])

    def _card(self, release: Release, manifest: Manifest) -> dict[str, Any]:
        card: dict[str, Any] = {}
        for file in manifest.files:
            if file.role in ("lineage", "metrics"):
                try:
                    card |= parse_json(self._read_file(release, manifest, file, MAX_BYTES))
                except BadManifest as error:
                    raise UserError(f"{file.name} of release {release.number} cannot be used: {error}.") from error
        return card

    def find(self, run_id: str) -> Release | None:
        """The latest release whose card has this run_id."""
        return next((one for one in reversed(self.all()) if self.card(one).get("run_id") == run_id), None)

    @_explained
    def read(self, release: Release, name: str) -> bytes:
        """One verified file of a release, in memory; UserError when it has none of that name, or it was altered or is
        not signed by whom it should be."""
        manifest = self.manifest(release)
        if self.verifier:
            signature = find_signature(self.store, manifest, self.verifier.key_id)
            require_signature(signature, manifest, self.verifier, f"{self.model}@{release.number}")
        file = manifest.file(name)
        if file is None:
            has = ", ".join(file.name for file in manifest.files)
            raise UserError(f"Release {release.number} has no file {name!r}: it has {has}.")
        return self._read_file(release, manifest, file)

    def pull(self, which: str, directory: Path) -> Release:
        """The named release's files and manifest in a folder, which is new or holds them (`infra.pulling`)."""
        from infra.pulling import pull_release

        return pull_release(self, which, directory)

    def uri(self, release: Release) -> str:
        """The address of its manifest."""
        key = self._key(release.number)
        old = self.model == OLD_MODEL and not self.store.exists(key)
        return self.store.uri(old_manifest_key(release.id) if old else key)

    def _read_file(self, release: Release, manifest: Manifest, file: ReleaseFile, most: int | None = None) -> bytes:
        size, key = file.content.size, manifest.key(file)
        if most is not None and size > most:
            raise BadManifest(f"it has {size:,} bytes, and {most:,} are the most that is read")
        damaged = f"Release {release.number} of {self.model} is damaged: {self.store.uri(key)}"
        try:
            data = read_range(large_objects(self.store), key, 0, size, size)
        except KeyError as error:
            raise UserError(f"{damaged} is missing.") from error
        except UnreadableObject as error:
            raise UserError(f"{damaged} cannot be read: {error}.") from error
        if hashlib.sha256(data).hexdigest() != file.content.sha256:
            raise UserError(f"{damaged} is not what was published.")
        return data

    def _read(self, number: int) -> Manifest:
        if number not in self._known:
            self._known[number] = self._fetch(number)
        return self._known[number]

    def _fetch(self, number: int) -> Manifest:
        key = self._key(number)
        try:
            try:
                manifest = read_manifest(self.store.get(key, MAX_BYTES))
            except KeyError:
                if self.model != OLD_MODEL:
                    raise
                key = old_log_key(number)
                release_id = old_id(self.store.get(key, MAX_BYTES))
                key = old_manifest_key(release_id)
                return read_old_manifest(self.store.get(key, MAX_BYTES), release_id)
            if manifest.model != self.model:
                raise BadManifest(f"it is one of {manifest.model}'s")
        except KeyError as error:
            raise UserError(f"There is no release {number} of {self.model}: {self.choices()}.") from error
        except (BadManifest, TooLarge) as error:
            raise UserError(
                f"Release {number} of {self.model} cannot be used, {self.store.uri(key)}: {error}."
            ) from error
        return manifest

    def _number(self, key: str) -> int:
        """The number of the release whose manifest has this key; 0 for another object."""
        match = _MANIFEST.fullmatch(key.removeprefix("releases/"))
        number = int(match["number"]) if match else 0
        return number if number and key == self._key(number) else 0

    def _key(self, number: int) -> str:
        return f"releases/{self.model}/{number:04d}/{MANIFEST}"

    # ---- names

    @_explained
    def promote(self, name: str, release_id: str, why: str, override: str = "") -> None:
        """Let the name point at the release; nothing happens when it does already.

        override: why the gate's verdict is not to count; it goes into the history. Raises UserError for an unknown
        release, a name that is none, and when somebody else moved the name meanwhile.
        """
        check_name(name, "release")
        release = self._by_id(release_id)
        if release is None:
            raise UserError(f"There is no release {release_id!r} to promote to {name}: {self.choices()}.")
        last = self.names.current(name)
        if last is None or last.release != release:
            self._move(name, release, why, last, override)

    @_explained
    def roll_back(self, name: str, why: str) -> Move:
        """Let the name point where it did before its last move, as a new entry; again and again, further back.

        Raises UserError where it never pointed anywhere else.
        """
        history = self.history(name)

        def place(number: int) -> int:
            """The entry at which a chain of roll-backs stands."""
            while number and history[number - 1].back_to:
                number = history[number - 1].back_to
            return number

        if [move.number for move in history] != list(range(1, len(history) + 1)):
            raise UserError(f"The history of {name} has gaps, so what was before is not known: promote a release.")
        back_to = place(len(history)) - 1
        if back_to < 1:
            raise UserError(f"{name} points at no earlier release: see moa releases show {self.model}@{name}.")
        self._move(name, history[back_to - 1].release, why, history[-1], back_to=back_to)
        return history[back_to - 1]

    def _move(
        self, name: str, release: Release, why: str, last: Move | None, override: str = "", back_to: int = 0
    ) -> None:
        """`last`: the move that was looked at when this one was decided."""
        large_objects(self.store).require_creates_once(f"probes/{secrets.token_hex(8)}")
        moved = self.names.move(name, release, why, last.number if last else 0, override, back_to)
        # A retried request may meet its own first try, which had arrived: then the name stands where it should.
        if not moved and self.current(name) != release:
            raise UserError(f"The name {name!r} was moved by somebody else just now: look at it and move it again.")

    @_explained
    def current(self, name: str) -> Release | None:
        """Where the name points now; None when it never pointed anywhere."""
        move = self.names.current(name)
        return move.release if move else None

    @_explained
    def history(self, name: str) -> list[Move]:
        """Every move of the name, oldest first."""
        return self.names.history(name)

    @_explained
    def resolve(self, which: str) -> Release:
        """The release that a name, a number or an id names; UserError when none does."""
        found: Release | None = None
        if is_number(which):
            if int(which):
                return Release(int(which), self._read(int(which)).id)
        elif is_id(which):
            found = self._by_id(which)
        elif re.fullmatch(r"[a-z][a-z0-9-]*", which):
            found = self.current(which)
        if found is None:
            raise UserError(f"There is no release {which[:80]!r} of {self.model}: {self.choices()}.")
        return found

    def _by_id(self, release_id: str) -> Release | None:
        return next((release for release in self.all() if release.id == release_id), None)

    def choices(self) -> str:
        """What there is, for a sentence."""
        numbers = self.numbers()
        if not numbers:
            return f"nothing has been published here yet as {self.model}"
        shown = [*self.names.all(), *map(str, numbers[-20:])]
        return f"choose {', '.join(shown)}"
