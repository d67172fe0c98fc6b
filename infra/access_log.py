"""Who had photos in their hands, when and for what: one small object per access, created and never replaced.

    access/2026-11-29/083012.123456-4f1c09aa.json

Stages write when they begin, commands before they show, hand out or delete a photo: what cannot be written down does
not happen. Who reads the store past this software is in the store's own log (S3: server access logging). Nothing here
names a photo.
"""

import getpass
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta

from infra.storage import ObjectStore, explained

FOLDER = "access"
_DAY = re.compile(rf"{FOLDER}/(\d{{4}}-\d\d-\d\d)/[^/]+\.json")


@dataclass(frozen=True)
class Access:
    """at: UTC, ISO 8601. who: the user of the operating system. what: a stage or a command. about: in a few words, what
    of. run: the id of Prefect's flow run, "" outside of one."""

    at: str
    who: str
    host: str
    what: str
    about: str = ""
    run: str = ""


def note_access(store: ObjectStore, what: str, about: str = "", run: str = "") -> Access:
    """Write down that this process is about to. Raises UserError where the store does not take it."""
    now = datetime.now(UTC)
    access = Access(now.isoformat(timespec="microseconds"), user_name(), socket.gethostname(), what, about, run)
    key = f"{FOLDER}/{now:%Y-%m-%d}/{now:%H%M%S.%f}-{secrets.token_hex(4)}.json"
    with explained(store):
        store.put(key, json.dumps(asdict(access)).encode())
    return access


def accesses(store: ObjectStore, days: float) -> Iterator[Access]:
    """Those of the last so many days, the oldest first; what a newer moa wrote otherwise is left out."""
    begin = datetime.now(UTC) - timedelta(days=days)
    for key in _since(store, begin.date()):
        try:
            access = Access(**json.loads(store.get(key)))
        except (KeyError, ValueError, TypeError):
            continue
        if datetime.fromisoformat(access.at) >= begin:
            yield access


def _since(store: ObjectStore, first: date) -> Iterator[str]:
    today, day = datetime.now(UTC).date(), first
    if (today - first).days > 366:  # one listing of all is cheaper
        yield from (key for key in store.list(f"{FOLDER}/") if (m := _DAY.fullmatch(key)) and m[1] >= str(first))
        return
    while day <= today:
        yield from store.list(f"{FOLDER}/{day}/")
        day += timedelta(days=1)


def user_name() -> str:
    """Of the user who runs this process, or their number: a container's user need not have a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
