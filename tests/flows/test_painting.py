"""Drawing with an adapter as evaluation and `moa generate` do."""

from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UniPCMultistepScheduler
from PIL import Image

from flows.painting import Painter, open_pipeline
from infra.errors import UserNotice
from infra.settings import Settings
from moa_model import MoAAdapter
from tests.moa_model.conftest import trained_like
from tests.sdxl_models import write_sdxl_base
from tests.tiny_world import PIXELS, tiny_settings, write_models

PROMPTS = ["a photo of a man holding roses", "a photo of a woman"]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    world = tmp_path_factory.mktemp("world")
    write_models(world / "models")
    if request.param == "sd1":
        return tiny_settings(world, world / "workspace")
    sdxl = write_sdxl_base(world / "models" / "sdxl")
    return tiny_settings(world, world / "workspace", {"models.base.location": str(sdxl)})


@pytest.fixture(scope="module")
def folder(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    trained_like(MoAAdapter.for_unet(open_pipeline(settings.models).unet, 12)).save_pretrained(folder)
    return folder


def test_the_base_decides_which_pipeline_draws_in_single_precision(settings: Settings) -> None:
    pipe = open_pipeline(settings.models)
    sdxl = settings.models.base.location.endswith("sdxl")
    assert type(pipe) is (StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline)
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == (4 if sdxl else 3) and {part.dtype for part in modules} == {torch.float32}
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler) and getattr(pipe, "watermark", None) is None


def _drawn(painter: Painter, subjects: list[dict[str, Image.Image]]) -> list[np.ndarray]:
    return [np.asarray(drawing.picture) for drawing in painter.draw(PROMPTS, subjects, [7, 8])]


def test_the_subject_counts_and_the_others_are_the_priors(settings: Settings, folder: Path) -> None:
    painter = Painter.open(settings, folder)
    prior = _drawn(painter, [{}, {}])
    crop = painter.crop(Image.effect_noise((PIXELS, PIXELS), 90).convert("RGB"))
    drawings = painter.draw(PROMPTS, [{"man": crop}, {}], [7, 8])
    assert not np.array_equal(drawings[0].picture, prior[0]) and np.array_equal(drawings[1].picture, prior[1])
    assert drawings[0].router is not None and drawings[1].router is None


def test_the_settings_say_where_the_prior_draws_alone(settings: Settings, folder: Path) -> None:
    """Whatever the release was made with: 0 leaves nothing to its experts."""
    evaluate = settings.evaluate.model_copy(update={"prior_only_above": 0})
    painter = Painter.open(settings.model_copy(update={"evaluate": evaluate}), folder)
    crop = Image.new("RGB", (PIXELS, PIXELS), "orange")
    for drawn, prior in zip(_drawn(painter, [{"man": crop}, {}]), _drawn(painter, [{}, {}]), strict=True):
        assert np.array_equal(drawn, prior)


def test_a_photo_of_nobody_is_taken_whole_with_a_warning(settings: Settings, folder: Path) -> None:
    """Nothing is as sure as the segmenter must be here, and no face is in an orange square."""
    segment = settings.segment.model_copy(update={"score_threshold": 1.0})
    painter = Painter.open(settings.model_copy(update={"segment": segment}), folder)
    wall = Image.new("RGB", (PIXELS, PIXELS), "orange")
    with pytest.warns(UserNotice, match='Nobody was found in "wall.png"') as told:
        crop = painter.crop(wall, '"wall.png"')
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert np.array_equal(np.asarray(crop), np.asarray(wall.resize(crop.size)))
    assert not np.array_equal(_drawn(painter, [{"man": crop}, {}])[0], _drawn(painter, [{}, {}])[0])


def test_a_kept_scene_is_the_priors_where_nobody_is(settings: Settings, folder: Path) -> None:
    """The same crop drawn freely and kept; every prior's run is drawn once, whoever is in the batch."""
    crop = Image.effect_noise((PIXELS, PIXELS), 90).convert("RGB")
    pictures = {}
    for kept in (False, True):
        evaluate = settings.evaluate.model_copy(update={"keep_scene": kept})
        painter = Painter.open(settings.model_copy(update={"evaluate": evaluate}), folder)
        assert painter.adapter is not None
        for layer in painter.adapter.layers:  # R_1 = 0.12: below the edge, and yet not nothing
            torch.nn.init.zeros_(layer.router.weight)
            layer.router.bias.data.copy_(torch.tensor([1.0, -1.0]))
        pictures[kept] = _drawn(painter, [{"man": crop}, {"woman": crop}])
    prior = _drawn(painter, [{}, {}])
    for free, same, stock in zip(pictures[False], pictures[True], prior, strict=True):
        assert not np.array_equal(free, stock)
        np.testing.assert_allclose(same.astype(float), stock, atol=1)  # decoded in another batch
    remembered = dict(painter._scenes)
    assert list(remembered) == list(zip(PROMPTS, [7, 8], strict=True))
    _drawn(painter, [{"man": crop.rotate(90)}, {}])
    assert all(painter._scenes[one] is scene for one, scene in remembered.items())


def test_a_scene_in_another_style_is_not_remembered(settings: Settings, folder: Path) -> None:
    """With a LoRA on the prior the same prompt and seed are another scene."""
    kept = settings.evaluate.model_copy(update={"keep_scene": True})
    painter = Painter.open(settings.model_copy(update={"evaluate": kept}), folder)
    crop = Image.new("RGB", (PIXELS, PIXELS), "orange")
    encoders = [part for name in ("text_encoder", "text_encoder_2") if (part := getattr(painter.pipe, name, None))]
    for part in (painter.pipe.unet, *encoders):
        part.peft_config = {"style": None}
        _drawn(painter, [{"man": crop}, {}])
        assert not painter._scenes
        del part.peft_config
    _drawn(painter, [{"man": crop}, {}])
    assert painter._scenes
