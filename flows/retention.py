"""How long photos are kept: those that `service.photo_days` calls too old are forgotten, and what holds them deleted.

They do not come back: a source that still has them is asked for nothing that was forgotten. Releases that learned from
them stay, as after `moa forget`, which lists them.
"""

import time
from dataclasses import dataclass

from flows import artifacts, job_records
from flows.holdings import objects_of_forgotten
from flows.run import Run
from infra.access_log import note_access
from infra.settings import Settings
from preprocessing.forgetting import Found, find_older, forget, shards_to_replace, unforgotten


@dataclass(frozen=True)
class TooOld:
    """What is over its time: photos to forget, and objects that hold forgotten ones already."""

    photos: Found
    objects: list[str]
    days: float
    at_work: bool = False
    """A job on a cluster writes into the store: all stays until the next time."""

    @property
    def says(self) -> str:
        """For people; "" where there is nothing to say."""
        if self.at_work:
            return f"Photos older than {self.days:g} days wait until no job is at work."
        if not self.photos.photos and not self.objects:
            return ""
        return (
            f"{len(self.photos.photos)} photos older than {self.days:g} days, {len(self.objects)} objects that held "
            "forgotten ones."
        )


def find_too_old(settings: Settings) -> TooOld:
    """Look, and change nothing."""
    days = settings.service.photo_days
    run = Run(settings)
    if not days or run.catalog.version < 0:
        return TooOld(Found([]), [], days)
    if job_records.at_work(run.store):
        return TooOld(Found([]), [], days, at_work=True)
    older = find_older(run.catalog, time.time() - days * 86_400)
    return TooOld(unforgotten(run.catalog, older), objects_of_forgotten(run), days)


def let_go(settings: Settings, found: TooOld) -> TooOld:
    """Forget them and delete what holds forgotten photos; what was deleted. Nobody else may be writing into the store.

    A crash at any moment leaves what the next time finds: photos to forget, or objects to delete.
    """
    if not found.days or found.at_work:
        return found
    run = Run(settings)
    if found.says:
        note_access(run.store, "retention", found.says)
    if found.photos.photos:
        shards = len(shards_to_replace(run.catalog, found.photos.keys))
        with artifacts.Track("retention: shards", shards or 1) as track:
            reason = f"kept for {found.days:g} days"
            forget(run.store, run.catalog, found.photos, reason, lambda done, of: track.to(done))
    keys = objects_of_forgotten(run)
    for key in artifacts.tracked(keys, len(keys), "retention: objects"):
        run.store.delete(key)
    return TooOld(found.photos, keys, found.days)
