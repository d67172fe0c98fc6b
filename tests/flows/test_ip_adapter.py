"""An IP-Adapter draws as diffusers draws with it; what is none, or for another base, is told in a sentence."""

import shutil
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flows.ip_adapter import IPAdapterPainter, locate_ip_adapter, read_ip_adapter
from flows.painting import Painter, open_pipeline
from infra.errors import UserError
from infra.settings import Settings
from tests.ip_adapter_models import write_ip_adapter
from tests.sdxl_models import write_sdxl_base
from tests.tiny_world import PIXELS, tiny_settings, write_models

PROMPTS = ["a photo of a man holding roses", "a photo of a woman"]
RED, NOISE = Image.new("RGB", (PIXELS, PIXELS), "red"), Image.effect_noise((PIXELS, PIXELS), 90).convert("RGB")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    return root


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def settings(request: pytest.FixtureRequest, world: Path) -> Settings:
    if request.param == "sd1":
        return tiny_settings(world, world / "workspace")
    sdxl = write_sdxl_base(world / "models" / "sdxl")
    return tiny_settings(world, world / "workspace", {"models.base.location": str(sdxl)})


@pytest.fixture(scope="module")
def file(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ip_adapter(tmp_path_factory.mktemp("ip-adapter"), open_pipeline(settings.models).unet)


def _array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, int)


def test_it_is_what_diffusers_own_loader_draws(settings: Settings, file: Path) -> None:
    painter = IPAdapterPainter.open(settings, *locate_ip_adapter(file.parent))
    ours = painter.draw(PROMPTS, [{"man": RED}, {"woman": NOISE}], [1, 2])
    pipe = open_pipeline(settings.models)
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale(settings.evaluate.ip_adapter_scale)
    for drawn, prompt, crop, seed in zip(ours, PROMPTS, (RED, NOISE), (1, 2), strict=True):
        generator = torch.Generator().manual_seed(seed)
        theirs = pipe(prompt, ip_adapter_image=crop, generator=generator, **painter.painter.call).images[0]
        assert np.array_equal(_array(drawn.picture), _array(theirs)) and drawn.router is None


def test_the_photo_counts_and_without_one_it_is_the_prior(settings: Settings, file: Path) -> None:
    painter = IPAdapterPainter.open(settings, file, file.parent / "image_encoder")
    prior = Painter.open(settings, None).draw(PROMPTS, [{}, {}], [1, 2])
    for _ in range(2):  # also after a photo was shown
        for ours, stock in zip(painter.draw(PROMPTS, [{}, {}], [1, 2]), prior, strict=True):
            assert np.array_equal(_array(ours.picture), _array(stock.picture))
        red, noise = (painter.draw(PROMPTS[:1], [{"man": crop}], [1])[0] for crop in (RED, NOISE))
        assert not np.array_equal(_array(red.picture), _array(noise.picture))
    two = painter.draw(["a man and a man"] * 2, [{"man": [RED, NOISE]}, {"man": [RED, RED]}], [1, 1])
    assert not np.array_equal(_array(two[0].picture), _array(two[1].picture)), "the second photo counts, too"


def test_what_cannot_be_used_is_one_sentence(world: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path)
    unet = open_pipeline(settings.models).unet
    file = write_ip_adapter(tmp_path / "good", unet)
    shutil.copytree(file.parent, tmp_path / "two")
    shutil.copy(file, tmp_path / "two" / "ip-adapter-plus.safetensors")
    shutil.copytree(file.parent, tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "image_encoder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ip-adapter_sd15.bin").touch()
    for path, says in (
        (tmp_path / "two", "several IP-Adapters .ip-adapter-plus.safetensors, ip-adapter_tiny.safetensors.: name one"),
        (tmp_path / "alone", "image encoder is not at .*alone/image_encoder"),
        (tmp_path / "empty", "holds no .safetensors"),
        (tmp_path / "ip-adapter_sd15.bin", "pickles are never loaded"),
        (tmp_path / "none.safetensors", "There is no IP-Adapter at"),
        (tmp_path / "nowhere", "There is no IP-Adapter at"),
    ):
        with pytest.raises(UserError, match=says):
            locate_ip_adapter(path)

    weights = load_file(file)
    by_face = {name: value for name, value in weights.items() if not name.startswith("image_proj.proj")}
    for name, tensors, says in (
        ("nothing", {"unet.weight": torch.zeros(1)}, "is no IP-Adapter"),
        ("face", {**by_face, "image_proj.proj.0.weight": torch.zeros(2, 2)}, "FaceID"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=says):
            read_ip_adapter(tmp_path / f"{name}.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_ip_adapter(tmp_path / "text.safetensors")

    encoder = file.parent / "image_encoder"
    wide = {name: value[:, :7].contiguous() if "_ip." in name else value for name, value in weights.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match="16 layers of width 7, and the base .* 16 of width 16"):
        IPAdapterPainter.open(settings, tmp_path / "wide.safetensors", encoder)
    other = write_ip_adapter(tmp_path / "other", unet, image_dim=13)
    with pytest.raises(UserError, match="wants image features of 13 numbers, and the encoder .* gives 12"):
        IPAdapterPainter.open(settings, other, encoder)
    less = {name: value for name, value in weights.items() if name != "image_proj.norm.bias"}
    save_file(less, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match="diffusers cannot load the IP-Adapter"):
        IPAdapterPainter.open(settings, tmp_path / "less.safetensors", encoder)
