"""A plain folder of photos, with folders inside it; nothing is known but the files' names."""

import hashlib
from collections.abc import Iterator

from preprocessing.places import Place
from preprocessing.sources import Record, Surroundings
from preprocessing.trees import Tree, license_files


class Folder:
    """Any photographs. Captions, masks and faces are all found by the later stages."""

    terms = ""

    def __init__(self, tree: Tree, around: Surroundings) -> None:
        self.tree = tree
        self.name = source_name("folder", tree)

    @property
    def license_files(self) -> tuple[Place, ...]:
        return license_files(self.tree)

    def records(self) -> Iterator[Record]:
        for picture in self.tree.walk():
            yield Record(self.name, picture.origin, picture.place, problem=picture.problem)


def source_name(kind: str, tree: Tree) -> str:
    """The name of a source of which there may be many.

    Two folders may both hold 1.jpg: the place is part of the name. A folder that moved is read again, and its photos
    are then refused as the duplicates they are.
    """
    return f"{kind}:{tree.name}-{hashlib.sha256(tree.identity).hexdigest()[:8]}"
