"""What can be evaluated, each by the same protocol: releases, the prior alone, somebody's IP-Adapter.

    prior                      the base model without anybody in it
    release:7, release:NAME    a release; without "release:" as well
    ip-adapter:PATH            diffusers' IP-Adapter for the same base: its .safetensors, or its folder

Whatever can open itself as something that draws can be judged; it needs a line in `find_contender`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from evaluation.protocol import Drawing
from flows.evaluation_scores import is_measured
from flows.run import Run, digest
from infra import model_files
from infra.errors import UserError
from infra.registry import Release, Releases, open_releases
from infra.settings import ModelReference, Settings

PRIOR, RELEASE, IP_ADAPTER = "prior", "release:", "ip-adapter:"
_MODELS = "models-evaluated/"


class Draws(Protocol):
    """A loaded model, as an actor holds it."""

    def crop(self, photo: Image.Image, name: str = "the photo") -> Image.Image:
        """The subject of a photo as the model is to see it."""

    def draw(
        self, prompts: Sequence[str], subjects: Sequence[Mapping[str, Any]], seeds: Sequence[int]
    ) -> list[Drawing]:
        """One picture per prompt; `subjects` maps its words to crops, an empty mapping is the prior alone."""


class DrawingModel(Protocol):
    """A model on its way to the actors: how it is opened there."""

    @property
    def draws_subjects(self) -> bool:
        """False: with or without somebody its picture is the prior's, and only that is drawn."""

    def open(self, settings: Settings) -> Draws:
        """Load it."""


@dataclass(frozen=True)
class AdapterModel:
    """MoA: an adapter's files by name."""

    files: Mapping[str, bytes]
    draws_subjects: bool = True

    def open(self, settings: Settings) -> Draws:
        """The base with the adapter."""
        from flows.painting import Painter

        return Painter.open(settings, self.files)


@dataclass(frozen=True)
class PriorModel:
    """The base alone."""

    draws_subjects: bool = False

    def open(self, settings: Settings) -> Draws:
        """The base."""
        from flows.painting import Painter

        return Painter.open(settings, None)


@dataclass(frozen=True)
class IPAdapterModel:
    """An IP-Adapter's file and its image encoder's folder."""

    file: Path
    encoder: Path
    draws_subjects: bool = True

    def open(self, settings: Settings) -> Draws:
        """The base with the IP-Adapter."""
        from flows.ip_adapter import IPAdapterPainter

        return IPAdapterPainter.open(settings, self.file, self.encoder)


@dataclass(frozen=True)
class Contender:
    """A model that is or can be evaluated.

    `name` is for people, `spec` what `--model` takes. `places`: an evaluation of it lies at one of these followed by
    the protocol's fingerprint, a new one at the last. `about` is kept beside its results.
    """

    name: str
    spec: str
    places: Sequence[str]
    load: Callable[[], DrawingModel]
    about: Mapping[str, Any] = field(default_factory=dict)
    release: Release | None = None

    def folder(self, run: Run, protocol: str) -> str:
        """Where it is, or is to be, evaluated under the protocol."""
        there = [f"{place}{protocol}" for place in self.places]
        return next((one for one in there if is_measured(run, one)), there[-1])

    def protocols(self, run: Run) -> set[str]:
        """The protocols under which it is measured."""
        keys = [(place, key) for place in self.places for key in run.store.list(place)]
        found = {key.removeprefix(place).partition("/")[0] for place, key in keys}
        return {protocol for protocol in found if is_measured(run, self.folder(run, protocol))}


def find_contender(run: Run, spec: str) -> Contender:
    """The model that is meant. Raises UserError where there is none such."""
    if spec == PRIOR:
        return Contender("prior", PRIOR, (f"{_MODELS}prior/",), PriorModel, {"model": PRIOR})
    if spec.startswith(IP_ADAPTER):
        return _ip_adapter(run.settings, spec.removeprefix(IP_ADAPTER))
    reference = spec.removeprefix(RELEASE)
    if ":" in reference:
        raise UserError(f"{spec[:80]!r} is no model: write prior, release:7, release:production or ip-adapter:PATH.")
    releases, which = open_releases(run.store, reference, run.settings.publish.model)
    return released(releases, releases.resolve(which))


def released(releases: Releases, release: Release) -> Contender:
    """A release. It may be measured already as the training that it was."""

    def load() -> AdapterModel:
        from flows.train import ADAPTER_FILES  # with Prefect

        return AdapterModel({file: releases.read(release, file) for file in ADAPTER_FILES})

    name = f"{releases.model}@{release.number}"
    trained = releases.card(release).get("run_id")
    places = [f"runs/{trained}/evaluation-"] if trained else []
    return Contender(
        name,
        f"{RELEASE}{name}",
        (*places, f"releases-evaluated/{release.id}/"),
        load,
        {"model": name, "id": release.id},
        release,
    )


def evaluated_models(run: Run, protocol: str) -> list[tuple[str, str]]:
    """What was judged under the protocol and is no release: (name for people, folder of its results)."""
    ends = f"/{protocol}/model.json"
    folders = [key.rpartition("/")[0] for key in run.store.list(_MODELS) if key.endswith(ends)]
    found = []
    for folder in folders:
        if is_measured(run, folder):
            about = json.loads(run.store.get(f"{folder}/model.json"))
            of_adapter = "IP-Adapter {} at scale {:g}".format(Path(about.get("file", "")).stem, about.get("scale", 1))
            named = of_adapter if about["model"] == "ip-adapter" else "the prior alone"
            found.append((named, folder))
    return sorted(found)


def _ip_adapter(settings: Settings, path: str) -> Contender:
    from flows.ip_adapter import locate_ip_adapter

    file, encoder = locate_ip_adapter(Path(path))
    with file.open("rb") as opened:
        weights = hashlib.file_digest(opened, "sha256").hexdigest()
    made = {
        "weights": weights,
        "image_encoder": model_files.fingerprint(ModelReference(location=str(encoder), backend="transformers")),
        "scale": settings.evaluate.ip_adapter_scale,
    }
    return Contender(
        f"IP-Adapter {file.stem}",
        f"{IP_ADAPTER}{file}",
        (f"{_MODELS}ip-adapter-{digest(made)}/",),
        lambda: IPAdapterModel(file, encoder),
        {"model": "ip-adapter", "file": file.name, **made},
    )
