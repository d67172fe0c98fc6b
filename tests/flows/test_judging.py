"""The instruments that the settings name."""

import hashlib
from pathlib import Path

import pytest

from evaluation.faces import FaceLocator
from evaluation.perceptual import ClipDistance
from flows.judging import instrument_records, open_instruments
from infra.settings import OptionalModelReference, Settings
from tests.sd15_models import write_facenet
from tests.tiny_world import tiny_settings, write_models


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    world = tmp_path_factory.mktemp("world")
    write_models(world / "models")
    return tiny_settings(world, world / "workspace")


def test_every_model_is_on_record_with_its_weights_digest(settings: Settings) -> None:
    tools = open_instruments(settings)
    assert set(tools.records) == {"identity", "prompt consistency", "people", "perceptual distance"}
    for name, model in (("identity", "identity"), ("prompt consistency", "clip"), ("people", "segmenter")):
        location = Path(getattr(settings.models, model).location)
        weights = (location / "model.safetensors").read_bytes()
        assert tools.records[name].location == str(location)
        assert tools.records[name].sha256 == hashlib.sha256(weights).hexdigest()
    assert isinstance(tools.perceptual, ClipDistance) and tools.locate_face is None and tools.safety is None


def test_facenet_looks_at_faces_and_a_safety_checker_is_named(settings: Settings, tmp_path: Path) -> None:
    facenet = settings.models.identity.model_copy(
        update={"location": str(write_facenet(tmp_path / "facenet")), "backend": "facenet"}
    )
    models = settings.models.model_copy(update={"identity": facenet})
    tools = open_instruments(settings.model_copy(update={"models": models}))
    assert isinstance(tools.locate_face, FaceLocator) and tools.records["faces"].location.startswith("facenet-pytorch")
    # Any folder of weights will do to be on record.
    safety = OptionalModelReference(location=settings.models.clip.location)
    assert "safety" in instrument_records(models.model_copy(update={"safety": safety}))
