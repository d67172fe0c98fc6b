"""Under which licences the photos of training shards came: counted from the samples, which carry their own."""

import json
import re
from collections import Counter

from preprocessing.shards import sample_spans
from preprocessing.sources.celeba import CelebA
from preprocessing.sources.fastcomposer import FastComposer
from preprocessing.sources.ffhq import FFHQ
from preprocessing.sources.paperfolk_source import Paperfolk

# Collections whose terms hold for each of their photos, whatever the photo's own licence allows.
_TERMS = {one.name: one.terms for one in (FFHQ, CelebA, FastComposer, Paperfolk)}
_NON_COMMERCIAL = re.compile(r"non-?\s?commercial|\bnc\b", re.IGNORECASE)


def shard_licences(tar: bytes) -> Counter[tuple[str, str, str]]:
    """(source, licence, consent) → photos of a shard; "" where a photo came without one."""
    found: Counter[tuple[str, str, str]] = Counter()
    for _, spans in sample_spans(tar):
        start, size = spans["json"]
        about = json.loads(tar[start : start + size])
        source, licence, consent = (str(about.get(name) or "") for name in ("source", "license", "consent"))
        found[source, licence, consent] += 1
    return found


def collection_terms(source: str) -> str:
    """The terms of a whole collection that is known here; "" for others."""
    return _TERMS.get(source, "")


def is_non_commercial(source: str, licence: str) -> bool:
    """Whether the photo's licence or its collection's terms keep commerce out, by their words."""
    return any(_NON_COMMERCIAL.search(text) for text in (licence, collection_terms(source)))
