"""What an evaluation's pictures are measured with, opened as the settings name it, each model with its digest."""

import torch

from evaluation.faces import FaceLocator, mtcnn_version
from evaluation.identity import open_identity_encoder
from evaluation.instruments import InstrumentRecord, Instruments
from evaluation.perceptual import open_perceptual
from evaluation.prompt_consistency import PromptScorer
from evaluation.safety import open_safety_checker
from flows.painting import locate_people
from infra.model_files import weights_digest
from infra.settings import ModelReference, ModelsSettings, Settings
from preprocessing.segmentation import open_segmenter


def open_instruments(settings: Settings) -> Instruments:
    """What pictures are measured with."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = settings.models
    segmenter = open_segmenter(models.segmenter, settings.segment)
    prompts = PromptScorer.open(models.clip, device)
    by_face = measures_faces(models)
    return Instruments(
        identity=open_identity_encoder(models.identity, device),
        prompts=prompts,
        locate=locate_people(segmenter),
        perceptual=open_perceptual(models.perceptual, models.clip, prompts, device),
        locate_face=FaceLocator(device) if by_face else None,
        safety=open_safety_checker(models.safety, device),
        records=instrument_records(models),
    )


def measures_faces(models: ModelsSettings) -> bool:
    """Whether identity looks at faces that MTCNN finds, and not at people."""
    return models.identity.backend == "facenet"


def instrument_records(models: ModelsSettings) -> dict[str, InstrumentRecord]:
    """Which model measures what. No safety checker has no record: the gate says that nobody looked."""
    records = {
        "identity": _record(models.identity),
        "prompt consistency": _record(models.clip),
        "people": _record(models.segmenter),
        "perceptual distance": _record(models.perceptual),
    }
    if measures_faces(models):
        package, sha256 = mtcnn_version()
        records["faces"] = InstrumentRecord(name="mtcnn", location=package, sha256=sha256)
    if models.safety.location:
        records["safety"] = _record(models.safety)
    return records


def _record(reference: ModelReference) -> InstrumentRecord:
    revision, sha256 = reference.revision or "", weights_digest(reference)
    return InstrumentRecord(name=reference.backend, location=reference.location, revision=revision, sha256=sha256)
