"""A style LoRA's recipe: low-rank changes of the attention, as diffusers loads them."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

from safetensors.torch import load_file

from infra.model_files import ZOO
from infra.zoo.pictures import LabelledPictures
from infra.zoo.style_lora import FILE, TARGETS, train_style_lora
from preprocessing.sources.paperfolk_style import as_print


def test_recipe_saves_a_lora(tmp_path: Path, pictures: LabelledPictures, check_safe: Callable[[Path], None]) -> None:
    prints = as_print(pictures.pixels)
    train_style_lora(prints, pictures.captions, ZOO / "base", tmp_path / "style", 0.05, lambda line: None)
    check_safe(tmp_path / "style")
    learned, shipped = (load_file(folder / FILE) for folder in (tmp_path / "style", ZOO / "style-lora"))
    assert learned.keys() == shipped.keys()
    assert any(tensor.any() for name, tensor in learned.items() if ".lora.up." in name)  # zero before the first step
    targets = {name.split(".lora.")[0].partition(".attn")[2].partition(".")[2] for name in learned}
    assert targets == set(TARGETS)
    assert len(learned) == 2 * 4 * 32  # two matrices, four projections, 32 attention layers
