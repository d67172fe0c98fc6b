"""What a stage's fingerprint stands for, so that "done anew" can say why; and how fast stages were.

Both are small objects beside the catalog, not rows of it: a recipe is written once per fingerprint, a speed once per
run, and neither is read to make a shard, so the same photos still give the same rows and the same bytes. (No torch
here: what only plans and lists need not load it.)
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import BaseModel

from infra.storage import ObjectStore

# Raise a stage's number when its code changes what it writes: its shards are then made anew. Those from bind to
# image_embeds are the columns that `shard` joins, each kept by itself.
FORMATS = {
    "ingest": 1, "signatures": 1, "duplicates": 1, "caption": 1, "segment": 1,
    "bind": 1, "moments": 1, "text": 1, "image_embeds": 2, "shard": 2,
}  # fmt: skip
# How many run at once changes no byte of the result, nor which photos there are.
_WITHOUT_EFFECT = {"workers", "splits"}
# Settings that came later, and the value that is how it was before: shards of then keep their fingerprints.
_AS_BEFORE = {"license": "", "consent": ""}


@dataclass(frozen=True)
class Recipe:
    """How a stage makes its shards.

    format: the code's format number. settings: those that have an effect. inputs: name -> fingerprint of the models
    ("models.captioner") and stages ("ingest") that it uses, in a fixed order.
    """

    stage: str
    format: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name it."""
        text = json.dumps([self.stage, self.format, self.settings, list(self.inputs.values())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, store: ObjectStore) -> None:
        """Write it down, unless it is."""
        # Not sorted: the inputs' order belongs to the fingerprint.
        store.create(_key(self.fingerprint), json.dumps(asdict(self)).encode())

    def changes_since(self, older: "Recipe") -> list[str]:
        """What differs, as "caption.num_beams 1 -> 5"; a changed input as its name alone."""
        found = [] if self.format == older.format else [f"{self.stage}'s format {older.format} -> {self.format}"]
        for name in dict.fromkeys([*older.settings, *self.settings]):
            before, now = (json.dumps(one.settings.get(name)) for one in (older, self))
            if before != now:
                found.append(f"{self.stage}.{name} {before} -> {now}")
        names = dict.fromkeys([*older.inputs, *self.inputs])
        return found + [name for name in names if older.inputs.get(name) != self.inputs.get(name)]


def stage_recipe(
    stage: str, settings: BaseModel, inputs: Mapping[str, str], only: Collection[str] | None = None
) -> Recipe:
    """How a stage makes its shards: its settings, the code's format number and `inputs`, the fingerprints of its models
    and of the stages that it reads, by name. `only`: the settings that it looks at, None = all."""
    values = {
        name: value
        for name, value in settings.model_dump(mode="json").items()
        if name not in _WITHOUT_EFFECT and _AS_BEFORE.get(name, ...) != value
    }
    if only is not None:
        values = {name: values[name] for name in only}
    return Recipe(stage, FORMATS[stage], values, dict(inputs))


def load_recipe(store: ObjectStore, fingerprint: str) -> Recipe | None:
    """The recipe that was written down under a fingerprint; None where none was, as by older versions."""
    try:
        return Recipe(**json.loads(store.get(_key(fingerprint))))
    except (KeyError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Speed:
    """How a run of a stage went: `seconds` for `shards` of `photos`, the first of them after `first_seconds` (that is
    how long its workers took to start and to do one)."""

    shards: int
    photos: int
    seconds: float
    first_seconds: float
    workers: int

    def estimate(self, shards: int) -> float:
        """Seconds that so many shards would take."""
        if not shards:
            return 0.0
        each = (self.seconds - self.first_seconds) / (self.shards - 1) if self.shards > 1 else self.seconds
        return self.first_seconds + (shards - 1) * max(each, 0.0)

    def save(self, store: ObjectStore, stage: str) -> None:
        """Add it to the stage's numbered entries."""
        number = len(store.list(f"timings/{stage}/"))
        while not store.create(f"timings/{stage}/{number:06}.json", json.dumps(asdict(self)).encode()):
            number += 1


def last_speed(store: ObjectStore, stage: str) -> Speed | None:
    """How fast the stage's last run was; None where it never ran."""
    for key in reversed(store.list(f"timings/{stage}/")):
        try:
            return Speed(**json.loads(store.get(key)))
        except (KeyError, ValueError, TypeError):
            continue
    return None


def _key(fingerprint: str) -> str:
    return f"fingerprints/{fingerprint}.json"
