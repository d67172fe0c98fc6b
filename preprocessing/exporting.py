"""Training samples in FastComposer's format, so that its trainer, and whoever reads that format, can use them.

A root as `sources/fastcomposer.py` describes it. Its `end` and `bbox` are ours: a character offset in the caption, and
[x1, y1, x2, y2] with the right and lower edge exclusive, as integers; its map holds the instance numbers as uint8,
which its trainer joins to the picture's channels.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from infra.errors import UserError
from preprocessing.catalog import ShardRow
from preprocessing.shards import Sample, decode_instances, encode_json, encode_npy, read_tar

FORMAT = 1  # raise it when the files of an export change
ABOUT = "export.json"
_ID_DIGITS = 8  # the first five name the folder: a thousand samples each
_TEST_SPLITS = ("test", "validation")
_KEPT = ("license", "author", "consent", "source", "origin", "identity", "split")


class FastComposerExport:
    """An export under way: begun, gone on with shard by shard in any order, and finished.

    Until it is finished it lies beside its directory under another name; an export of the same shards that was killed
    goes on after the shards that are done.
    """

    def __init__(self, directory: Path, shards: Sequence[ShardRow]) -> None:
        """UserError where `directory` holds something else than an export of the same shards."""
        self.directory = directory.expanduser().absolute()
        self.shards = sorted(shards, key=lambda row: row.shard)
        content = [FORMAT, [[row.shard, row.sha256, row.samples] for row in self.shards]]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        firsts = accumulate((row.samples for row in self.shards), initial=0)
        self._first = dict(zip((row.shard for row in self.shards), firsts, strict=False))
        self.samples = sum(row.samples for row in self.shards)
        if self.samples >= 10**_ID_DIGITS:
            raise UserError(f"{self.samples} samples are more than ids of {_ID_DIGITS} digits can name: export fewer.")
        self._work = self.directory.with_name(f".{self.directory.name}.partial-{self.digest[:16]}")
        self._data, self._done = self._work / "data", self._work / "done"
        self.finished = self._is_finished()
        if (
            not self.finished
            and self.directory.exists()
            and (not self.directory.is_dir() or next(self.directory.iterdir(), None) is not None)
        ):
            raise UserError(f'"{directory}" is there and holds something else: name a new or empty folder.')

    def _is_finished(self) -> bool:
        try:
            return json.loads((self.directory / ABOUT).read_bytes()).get("digest") == self.digest
        except (OSError, ValueError, AttributeError):
            return False

    def pending(self) -> list[ShardRow]:
        """The shards that have yet to be added."""
        if self.finished:
            return []
        self._data.mkdir(parents=True, exist_ok=True)
        self._done.mkdir(exist_ok=True)
        return [row for row in self.shards if not (self._done / f"{row.shard}.json").exists()]

    def add(self, row: ShardRow, tar: bytes) -> None:
        """Write a shard's samples; the shard counts as done when all of them are there."""
        ids = []
        for number, sample in enumerate(read_tar(tar), start=self._first[row.shard]):
            name = f"{number:0{_ID_DIGITS}d}"
            folder = self._data / name[:5]
            folder.mkdir(exist_ok=True)
            about = sample.json()
            (folder / f"{name}.jpg").write_bytes(sample.parts["jpg"])
            (folder / f"{name}.json").write_bytes(encode_json(_description(sample, about)))
            (folder / f"{name}.npy").write_bytes(encode_npy(decode_instances(sample.parts["instances.png"])))
            ids.append([name, "test" if about.get("split") in _TEST_SPLITS else "train"])
        if len(ids) != row.samples:
            raise ValueError(f"shard {row.shard} holds {len(ids)} samples, the catalog says {row.samples}")
        _write_whole(self._done / f"{row.shard}.json", json.dumps(ids))

    def finish(self) -> None:
        """Write the lists of ids and give the export its name; every shard has been added."""
        if self.finished:
            self._sweep()
            return
        ids = [one for row in self.shards for one in json.loads((self._done / f"{row.shard}.json").read_bytes())]
        for name, splits in (("", ("train", "test")), ("_train", ("train",)), ("_test", ("test",))):
            lines = "".join(f"{one}\n" for one, split in ids if split in splits)
            _write_whole(self._data / f"image_ids{name}.txt", lines)
        about = {"digest": self.digest, "format": FORMAT, "samples": len(ids), "shards": len(self.shards)}
        _write_whole(self._data / ABOUT, json.dumps(about, indent=1))
        if self.directory.is_dir():
            self.directory.rmdir()  # it is empty: anything else was refused
        os.rename(self._data, self.directory)
        self._sweep()
        self.finished = True

    def _sweep(self) -> None:
        """What exports to this directory left behind when they were killed, of these shards or of others."""
        for path in self.directory.parent.glob(f"{glob.escape(self._work.name.rpartition('-')[0])}-*"):
            shutil.rmtree(path, ignore_errors=True)


def _description(sample: Sample, about: dict[str, Any]) -> dict[str, Any]:
    """What stands in the sample's json: the format's own fields, and licence and origin, which travel with a photo."""
    segments = [
        {
            "id": subject["instance"],
            "end": subject["end"],
            "bbox": [round(edge) for edge in subject["box"]],
            "coco_label": "person",
            "start": subject["start"],
            "word": subject["word"],
        }
        for subject in sorted(about["subjects"], key=lambda subject: subject["end"])
    ]
    kept = {name: about[name] for name in _KEPT if about.get(name)}
    return {"caption": about["caption"], "segments": segments, "key": sample.key, **kept}


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.partial")
    part.write_text(text, "utf-8")
    os.replace(part, path)
