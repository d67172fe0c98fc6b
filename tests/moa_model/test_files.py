import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.errors import UserError
from moa_model import MoAAdapter
from tests.tiny_models import IMAGE_DIM, tiny_unet


@pytest.fixture
def folder(tmp_path):
    MoAAdapter.for_unet(tiny_unet(), IMAGE_DIM, image_encoder="tiny").save_pretrained(tmp_path)
    return tmp_path


def _edit_weights(folder, change) -> None:
    weights = load_file(folder / "adapter.safetensors")
    change(weights)
    save_file(weights, folder / "adapter.safetensors")


def _edit_config(folder, change) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_round_trip_is_exact_and_writes_two_files(folder) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "adapter_config.json"]
    loaded = MoAAdapter.from_pretrained(folder)
    assert loaded.config.image_encoder == "tiny"
    assert all(
        torch.equal(loaded.state_dict()[name], w) for name, w in load_file(folder / "adapter.safetensors").items()
    )


def test_no_weight_of_the_base_is_saved(folder) -> None:
    names = load_file(folder / "adapter.safetensors")
    assert {name.split(".")[0] for name in names} == {"layers", "prompt"}


NAME = "layers.4.expert.query.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "adapter_config.json").unlink(), "No adapter at"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "not an adapter's configuration"),
        (lambda f: (f / "adapter.safetensors").write_bytes((f / "adapter.safetensors").read_bytes()[:-100]), "damaged"),
        (lambda f: (f / "adapter.safetensors").write_bytes(b""), "damaged"),
        (lambda f: _edit_weights(f, lambda w: w[NAME].fill_(float("nan"))), "not finite numbers in layers.4"),
        (lambda f: _edit_weights(f, lambda w: w.pop(NAME)), "is missing"),
        (lambda f: _edit_weights(f, lambda w: w.update(evil=torch.zeros(1))), "evil is unknown"),
        (lambda f: _edit_weights(f, lambda w: w.update({NAME: torch.zeros(2, 2)})), "has shape"),
        (lambda f: _edit_config(f, lambda c: c["layers"][3].update(heads=4)), "base_digest"),
        (lambda f: _edit_config(f, lambda c: c.update(format="moa-adapter/9")), "format"),
        (lambda f: _edit_config(f, lambda c: c.update(image_dim=IMAGE_DIM + 1)), "has shape"),
    ],
)
def test_damage_is_refused_in_one_sentence(folder, damage, message) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as refusal:
        MoAAdapter.from_pretrained(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)
