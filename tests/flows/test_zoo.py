"""`moa zoo`: pictures drawn once, results installed, every recipe reachable."""

from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel
from typer.testing import CliRunner

from flows.zoo import RECIPES, Name, Workshop, install, zoo
from infra import model_files
from infra.errors import UserError
from infra.zoo.identity import new_identity_encoder


def test_pictures_are_drawn_once(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, share=0.001)
    path = shop.pictures("broad", 2, 1000)
    assert path.name == "broad-2-64.npz"  # never fewer than a batch
    stamp = path.stat().st_mtime_ns
    assert len(shop.load(("broad", 2, 1000))) == 64 and path.stat().st_mtime_ns == stamp
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_installed_models_are_half_as_large_and_compute_in_full(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_identity_encoder().eval()
    model.save_pretrained(tmp_path / "trained")
    config = tmp_path / "trained" / "config.json"
    config.write_text(config.read_text().replace("{", '{"_name_or_path": "/home/me/trained",', 1))
    weights = tmp_path / "weights"
    weights.mkdir()
    for _ in range(2):  # a second time over the first
        folder = install(tmp_path / "trained", "identity", weights)
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}  # 64: batch norm's counters
    loaded = AutoModel.from_pretrained(folder).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(loaded(pixels).pooler_output, model(pixels).pooler_output, atol=1e-2)
    assert [path.name for path in weights.iterdir()] == ["identity"]
    assert "/home/me" not in (folder / "config.json").read_text()


def test_what_is_shipped_does_not_say_where_it_lay() -> None:
    for path in model_files.ZOO.rglob("*.json"):
        assert '"_name_or_path": "/' not in path.read_text("utf-8"), path


def test_weights_beyond_half_precision_are_not_installed(tmp_path: Path) -> None:
    model = new_identity_encoder()
    with torch.no_grad():
        next(model.parameters()).mul_(1e9)
    model.save_pretrained(tmp_path / "trained")
    (tmp_path / "weights").mkdir()
    with pytest.raises(UserError, match="half precision"):
        install(tmp_path / "trained", "identity", tmp_path / "weights")
    assert not (tmp_path / "weights" / "identity").exists()


def test_the_command_trains_and_installs(tmp_path: Path) -> None:
    options = ["--minutes", "0.01", "--share", "0.001", "--work", str(tmp_path), "--weights", str(tmp_path / "weights")]
    for name in ("tokenizer", "clip"):
        result = CliRunner().invoke(zoo, ["train", name, *options], catch_exceptions=False)
        assert result.exit_code == 0
    AutoModel.from_pretrained(tmp_path / "weights" / "clip")
    assert not (tmp_path / "weights" / "tokenizer").exists()  # it is part of others


def test_a_recipe_says_what_it_needs_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="moa zoo train tokenizer first"):
        RECIPES["clip"].make(Workshop(tmp_path, share=0.001), 0.01)


def test_every_recipe_can_be_named() -> None:
    assert {*RECIPES, "release-1", "all"} == {name.value for name in Name}
