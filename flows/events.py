"""What the pipeline tells Prefect of itself, as events on which automations act (`flows/automations.py`)."""

import sys
from typing import Any

from infra.settings import Settings

ARRIVED = "moa.photos.arrived"  # the watcher: new objects, and the source has been quiet since
INGESTED = "moa.photos.ingested"  # a batch was read: how many were kept and refused
BATCH_REFUSED = "moa.batch.refused"  # none of a batch can be used, or too many of it were refused
RELEASED = "moa.release.published"
PROMOTED = "moa.release.promoted"
GATE_REFUSED = "moa.gate.refused"
SWEPT = "moa.store.swept"


def resource(settings: Settings) -> dict[str, str]:
    """Whose events they are: the model's."""
    model = settings.publish.model
    return {"prefect.resource.id": f"moa.model.{model}", "prefect.resource.name": model}


def tell(settings: Settings, event: str, **facts: Any) -> None:
    """Emit an event from within a flow run; nothing outside of one. Of the facts `says` is the sentence for people."""
    if "prefect" not in sys.modules:
        return
    from prefect.context import FlowRunContext
    from prefect.events import emit_event

    if FlowRunContext.get() is not None:  # Prefect adds the run itself, its flow and its deployment
        emit_event(event, resource=resource(settings), payload=facts)
