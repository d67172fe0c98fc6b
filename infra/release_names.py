"""Names such as "production" that move from release to release; each move is an entry of the name's history.

    names/{model}/{name}/0003.json    move 3: the release's number and id, who, when, why; written once
    aliases/{name}/00000001.json      the same in registries of before, whose one model is now called "moa"

The highest number is the present. Two who move a name at once collide on the next number, and one is told.
"""

import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infra.access_log import user_name
from infra.errors import UserError
from infra.manifest import BadManifest, parse_json, to_json
from infra.references import check_name, is_id, is_name
from infra.storage import ObjectStore, TooLarge

FORMAT = "moa-name/1"
OLD_MODEL = "moa"  # what the model of a registry of before is called
_MAX_BYTES = 64_000
_KEY = re.compile(r"(?P<name>[a-z][a-z0-9-]*)/(?P<number>[0-9]{4,8})\.json")


@dataclass(frozen=True)
class Release:
    """A release of a model: its number, and the id that follows from its content."""

    number: int
    id: str


@dataclass(frozen=True)
class Move:
    """One entry of a name's history. override: why the gate's verdict did not count. back_to: of a roll-back, the entry
    whose release it took up again."""

    number: int
    release: Release
    why: str
    who: str = ""
    when: str = ""
    override: str = ""
    back_to: int = 0


class Names:
    """The names of one model's releases."""

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._store, self.model = store, model

    def all(self) -> list[str]:
        """Every name that ever moved, sorted."""
        return sorted(self._entries())

    def history(self, name: str) -> list[Move]:
        """Every move of the name, oldest first. UserError where an entry cannot be read."""
        keys = self._entries(name).get(name, {})
        return [self._read(keys[number], number) for number in sorted(keys)]

    def current(self, name: str) -> Move | None:
        """The last move; None where the name never moved."""
        keys = self._entries(name).get(name, {})
        return self._read(keys[max(keys)], max(keys)) if keys else None

    def move(self, name: str, release: Release, why: str, after: int, override: str = "", back_to: int = 0) -> bool:
        """Add the move that follows move `after`; False where somebody else has moved the name meanwhile."""
        check_name(name, "release")
        entry: dict[str, Any] = {
            "format": FORMAT,
            "release": release.number,
            "id": release.id,
            "who": f"{user_name()}@{socket.gethostname()}",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "why": why,
        }
        entry |= {"override": override} if override else {}
        entry |= {"back_to": back_to} if back_to else {}
        return self._store.create(f"names/{self.model}/{name}/{after + 1:04d}.json", to_json(entry))

    def _entries(self, name: str = "") -> dict[str, dict[int, str]]:
        """Name → number of the move → its key."""
        found: dict[str, dict[int, str]] = {}
        folders = [f"names/{self.model}/"]
        if self.model == OLD_MODEL:
            folders.insert(0, "aliases/")  # what was moved since then stands in its place
        for folder in folders:
            for key in self._store.list(folder + (f"{name}/" if name else "")):
                match = _KEY.fullmatch(key.removeprefix(folder))
                if match and is_name(match["name"]):
                    found.setdefault(match["name"], {})[int(match["number"])] = key
        return found

    def _read(self, key: str, number: int) -> Move:
        try:
            entry = parse_json(self._store.get(key, _MAX_BYTES))
            if key.startswith("aliases/"):
                return _old_move(number, entry)
            return _move(number, entry)
        except (BadManifest, TooLarge, KeyError) as error:
            raise UserError(
                f"The history of a name is damaged: {self._store.uri(key)} cannot be used ({error}); put it back from "
                "a copy, or delete it if it is the last one and promote again."
            ) from error


def _move(number: int, entry: dict[str, Any]) -> Move:
    if entry.get("format") != FORMAT:
        raise BadManifest(f"it is not of the format {FORMAT}, the only one that this moa reads")
    optional = {"override": "", "back_to": 0}
    texts = {name: entry.get(name, "") for name in ("who", "when", "why", "override")}
    back_to = entry.get("back_to", 0)
    if entry.keys() - optional.keys() != {"format", "release", "id", "who", "when", "why"}:
        raise BadManifest("it does not have the fields of a move")
    if (
        not all(isinstance(text, str) for text in texts.values())
        or type(back_to) is not int
        or not 0 <= back_to < number
    ):
        raise BadManifest("its fields are not what they should be")
    return Move(number, _release(entry["release"], entry["id"]), back_to=back_to, **texts)


def _old_move(number: int, entry: dict[str, Any]) -> Move:
    if entry.keys() != {"id", "number", "why"} or not isinstance(entry["why"], str):
        raise BadManifest("it does not have the fields of a move")
    return Move(number, _release(entry["number"], entry["id"]), entry["why"])


def _release(number: object, release_id: object) -> Release:
    if type(number) is not int or not 0 < number < 10**8 or not isinstance(release_id, str) or not is_id(release_id):
        raise BadManifest("it names no release")
    return Release(number, release_id)
