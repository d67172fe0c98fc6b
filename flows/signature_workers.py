"""The Ray actors that say what photos look like; each holds CLIP's image tower."""

from typing import Any

from flows.workers import limit_threads
from infra.settings import ModelReference, SignatureSettings
from infra.storage import ObjectStore
from preprocessing.catalog import ShardRow, load_shard, store_shard


class SignatureWorker:
    """{"row": ingest's ShardRow} -> {"shard": ShardRow, "photos": []}."""

    def __init__(self, store: ObjectStore, clip: ModelReference, settings: SignatureSettings, fingerprint: str) -> None:
        from preprocessing.signatures import Signer

        limit_threads()
        self.store, self.fingerprint = store, fingerprint
        self.signer = Signer(clip, settings.batch_size)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from preprocessing.signatures import sign_shard

        row: ShardRow = item["row"]
        tar = sign_shard(load_shard(self.store, row), self.signer)
        shard = store_shard(self.store, "signatures", row.shard, self.fingerprint, tar, row.samples, row.source)
        return {"shard": shard, "photos": []}


class PictureSigner:
    """Signs pictures that are in no shard: {"photos": [SignedPhoto], "pictures": [PNG]} -> {"signatures"}."""

    def __init__(self, clip: ModelReference, settings: SignatureSettings) -> None:
        from preprocessing.signatures import Signer

        limit_threads()
        self.signer = Signer(clip, settings.batch_size)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        from preprocessing.shards import decode_picture

        images = [decode_picture(png) for png in item["pictures"]]
        return {"signatures": self.signer.sign(item["photos"], images)}
