"""The settings of the service: the pipeline that retrains by itself, and who is told what."""

from typing import Literal

from pydantic import Field

from infra.settings_fields import Count, Fraction, FrozenSettings


class ServiceSettings(FrozenSettings):
    pool: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="Prefect's work pool in which the runs start")
    pool_type: Literal["process", "kubernetes"] = Field(
        description='"process": on the machine of the worker; "kubernetes": a pod for each run'
    )
    look_seconds: float = Field(gt=0, description="the watcher looks at the source this often")
    quiet_seconds: float = Field(
        ge=0, description="new photos start a retraining when so long no other one came and none grew"
    )
    longest_wait_seconds: float = Field(gt=0, description="but not later than this after the first of them")
    pending_minutes: float = Field(
        gt=0, description="a run that was to start and did not within this is ended, and its slot is free"
    )
    heartbeat_seconds: int = Field(
        ge=30, description="a run says this often that it lives; after three that are missing it counts as crashed"
    )
    again_minutes: float = Field(
        gt=0, description="a retraining that crashed or failed is started again after this; each time twice as long"
    )
    again_times: Count = Field(description="but not more often than this in a row")
    late_minutes: float = Field(gt=0, description="a run that no worker took within this is late, and that is told")
    silent_days: float = Field(
        gt=0.00012, description="so long without an ingested photo, and that is told; 10 s or more"
    )
    refusal_jump: Fraction = Field(
        description="a batch is refused whole where its share of refused photos is above the usual by more than this"
    )
    refusal_photos: Count = Field(description="batches of fewer photos are not judged by their share of refusals")
    checkpoint_days: float = Field(
        ge=0, description="the sweep takes the checkpoints of trainings that nobody went on with for so long"
    )
    run_days: float = Field(
        gt=0.042, description="moa up: Prefect deletes ended runs, with logs and pictures, after so long; over an hour"
    )
    photo_days: float = Field(
        ge=0,
        description="the sweep forgets photos that were ingested longer ago and deletes what holds them; 0 = never",
    )
    notify: Literal["", "webhook", "slack", "email"] = Field(
        description='how people are told: POST of JSON, Slack webhook, e-mail through SendGrid; "" = in Prefect alone'
    )
    notify_secret: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that has the webhook's address, or SendGrid's key, for moa deploy",
    )
    notify_sender: str = Field(description='for e-mail: whom it comes from; "" where there is none')
    notify_to: list[str] = Field(description="for e-mail: whom it goes to")
    prefect_port: int = Field(
        ge=1, le=65535, description="moa up: where Prefect's server and pages listen, on loopback"
    )
    postgres_port: int = Field(ge=1, le=65535, description="moa up: PostgreSQL's, on loopback, where it is installed")
    ray_port: int = Field(ge=1, le=65535, description="moa up: where the Ray head listens, on loopback")
    ray_dashboard_port: int = Field(ge=1, le=65535, description="moa up: its dashboard's, on loopback")
    ray_head_mb: float = Field(
        ge=0, description="moa up: a Ray head that holds more is started anew while no run is at work; 0 = never"
    )
    metrics_port: int = Field(ge=1, le=65535, description="moa up: where moa metrics answers Prometheus, on loopback")
    scrape_port: int = Field(ge=1, le=65535, description="moa up: Prometheus', on loopback, where it is installed")
