"""What people call a release: MODEL, MODEL@production, MODEL@7, MODEL@ID, the second half alone; an address before it.

production            the name of the only model's release        7, 0123456789abcdef   its number or id
moa@staging, moa@7    of the model "moa"                          moa                   moa@production
s3://bucket/prefix/moa@7, runs/demo/store/moa@7                   the registry, too
"""

import re
from dataclasses import dataclass

from infra.errors import UserError

PRODUCTION = "production"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_NUMBER = re.compile(r"[0-9]{1,8}")
_ID = re.compile(r"[0-9a-f]{16}")
_RESERVED = {"log"}  # a folder of registries of before


@dataclass(frozen=True)
class Reference:
    """model: "" = the only one there. which: a name, a number or an id; "" = not said. word: one word alone, which may
    be a model's name or a release's."""

    model: str
    which: str
    word: bool = False


def parse_reference(text: str) -> Reference:
    """Raises UserError for what is no reference."""
    model, at, which = text.partition("@")
    if not at:
        if is_number(text) or is_id(text):
            return Reference("", text)
        if is_name(text):
            return Reference("", text, word=True)
    elif is_name(model) and (is_number(which) or is_id(which) or is_name(which)):
        return Reference(model, which)
    raise UserError(
        f"{text[:80]!r} names no release: write MODEL@production, MODEL@7, MODEL@ID, or one of these without MODEL@."
    )


def split_address(text: str) -> tuple[str, str]:
    """("s3://bucket/prefix", "moa@7") of an address, ("", text) of a reference alone."""
    root, slash, reference = text.rpartition("/")
    return (root or slash, reference) if slash else ("", text)


def is_name(text: str) -> bool:
    """Whether a model or a release may be called so."""
    return bool(_NAME.fullmatch(text)) and not is_id(text) and text not in _RESERVED


def is_number(text: str) -> bool:
    """Whether it is a release's number."""
    return bool(_NUMBER.fullmatch(text))


def is_id(text: str) -> bool:
    """Whether it is a release's id."""
    return bool(_ID.fullmatch(text))


def check_name(text: str, what: str) -> str:
    """The name itself. Raises UserError where a model or a release cannot be called so; `what`: "model", "release"."""
    if not is_name(text):
        raise UserError(
            f"{text[:80]!r} cannot name a {what}: use lower-case letters, digits and hyphens, a letter first."
        )
    return text
