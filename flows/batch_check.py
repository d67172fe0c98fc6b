"""Whether the photos that came since the last release are like those before, or a batch that somebody should see."""

from dataclasses import dataclass

from flows import events
from flows.run import Run, StageResult
from infra.errors import UserError
from infra.registry import Release


class BatchRefused(UserError):
    """No release is made of these photos until somebody looked, or until enough good ones came."""


@dataclass(frozen=True)
class Batch:
    """Photos since the last release, and before it."""

    seen: int
    refused: int
    seen_before: int
    refused_before: int

    @property
    def share(self) -> float:
        """The refused ones of the batch."""
        return self.refused / self.seen if self.seen else 0.0

    @property
    def usual(self) -> float:
        """The refused ones of all photos before."""
        return self.refused_before / self.seen_before if self.seen_before else 0.0


def batch_since(run: Run, release: Release | None) -> Batch:
    """Counted in the catalog, so that a run that goes on where another was killed judges the same batch."""
    now = run.catalog.counts(run.fingerprints)
    refused = now.seen - now.kept
    if release is None:
        return Batch(now.seen, refused, 0, 0)
    card = run.releases.card(release)
    before = run.catalog.counts(card.get("stages"), card["catalog_version"])
    was = before.seen - before.kept
    return Batch(max(now.seen - before.seen, 0), max(refused - was, 0), before.seen, was)


def check_batch(run: Run, stages: list[StageResult], settled: Release | None) -> None:
    """Raise BatchRefused, and tell it as an event, where a batch is none to train on.

    That is: this run read photos and nothing of them can be used, or of enough photos since the last release a larger
    share than usual was refused. `settled`: the release that was made of all that can be trained on.
    """
    service = run.settings.service
    read = sum(int(stage.facts.get("read", 0)) for stage in stages)
    releases = run.releases.all()
    batch = batch_since(run, releases[-1] if releases else None)
    if settled is not None:
        if read and batch.seen and batch.refused == batch.seen:
            _refuse(run, batch, f"None of {batch.seen} new photos can be used: see why on the run's page.")
        return
    jumped = batch.share > batch.usual + service.refusal_jump
    if releases and batch.seen >= service.refusal_photos and jumped:
        _refuse(
            run,
            batch,
            f"Of {batch.seen} photos since release {releases[-1].number} {batch.share:.0%} were refused, and "
            f"{batch.usual:.0%} of those before: look at why, then run the deployment with accept_refusals.",
        )


def _refuse(run: Run, batch: Batch, says: str) -> None:
    counts = run.catalog.counts(run.fingerprints)
    facts = {"seen": batch.seen, "refused": batch.refused, "share": batch.share, "usual": batch.usual}
    reasons = {str(reason): count for reason, count in counts.refused.items()}
    events.tell(run.settings, events.BATCH_REFUSED, says=says, reasons=reasons, **facts)
    raise BatchRefused(says)
