"""What a user can get wrong: one sentence that names the word, file or mismatch, and the pipeline is as it was."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.errors import UserError
from moa_model import MoAAdapter
from tests.moa_model.conftest import PROMPT, trained_like
from tests.tiny_models import IMAGE_DIM, tiny_clip
from tests.tiny_pipelines import BASES, Case, tiny_case

COUPLE = "a man and a woman beside a man"


def _state(case: Case) -> tuple[list[int], int, dict[str, Any]]:
    """Processors, hooks and configuration of a pipeline's U-Net."""
    unet = case.pipe.unet
    return [id(one) for one in unet.attn_processors.values()], len(unet._forward_pre_hooks), dict(unet.config)


def _refused(attempt: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as refusal:
        attempt()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("subjects", "says"),
    [
        (lambda f: {"dog": f}, ['"dog"', COUPLE]),
        (lambda f: {"oma": f}, ['"oma"', COUPLE]),  # a part of "woman"
        (lambda f: {"man": f}, ['"man"', "2 times", "list", COUPLE]),
        (lambda f: {"man": [f, f, f]}, ['"man"', "3 subjects", "2 times", COUPLE]),
        (lambda f: {"woman": [f, f]}, ['"woman"', "2 subjects", COUPLE]),
        (lambda f: {"man": [f, None], "MAN": [f, None]}, ["Two subjects", '"MAN"', COUPLE]),
        (lambda f: {"woman": f[:5]}, ["width 12", "(5,)"]),
        (lambda f: {"woman": f * float("nan")}, ["not finite"]),
        (lambda f: {"woman": "photo.png"}, ["PIL picture"]),
        (lambda f: {"woman": Image.new("RGB", (8, 8))}, ["image encoder"]),
        (lambda f: [{"woman": f}, {"woman": f}], ["1 prompts", "not 2"]),
    ],
    ids="absent part-of-word repeats too-many too-many-of-one same-place width nan path no-clip prompts".split(),
)
def test_bindings_that_cannot_be(subjects: Any, says: list[str], feature: Tensor) -> None:
    case = tiny_case("sd1")
    stock = case.draw(COUPLE)
    adapter = trained_like(MoAAdapter.for_unet(case.pipe.unet, IMAGE_DIM)).attach(case.pipe)
    before = _state(case)
    sentence = _refused(lambda: adapter.bind(case.pipe, COUPLE, subjects(feature)))
    assert all(part in sentence for part in says), sentence
    assert _state(case) == before
    assert torch.equal(case.draw(COUPLE), stock)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved adapter for each base."""
    made = {base: tmp_path_factory.mktemp(base) for base in BASES}
    for base, folder in made.items():
        trained_like(MoAAdapter.for_unet(tiny_case(base).pipe.unet, IMAGE_DIM)).save_pretrained(folder)
    return made


@pytest.mark.parametrize("theirs", BASES)
@pytest.mark.parametrize("own", BASES)
def test_an_adapter_for_another_base(own: str, theirs: str, folders: dict[str, Path]) -> None:
    case = tiny_case(theirs)
    before = _state(case)
    adapter = MoAAdapter.from_pretrained(folders[own])
    if own == theirs:
        assert adapter.attach(case.pipe).is_attached(case.pipe)
        return
    assert "for another base" in _refused(lambda: adapter.attach(case.pipe))
    assert _state(case) == before and not adapter.is_attached(case.pipe)


NAME = "layers.2.expert.query.weight"


def _edit(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(weights)
        save_file(weights, file)

    return edit


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-64]), "damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "damaged"),
        (lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:]), "damaged"),
        (lambda file: file.write_bytes(file.read_bytes() + b"more"), "damaged"),
        (lambda file: file.unlink(), "cannot be read"),
        (_edit(lambda w: w[NAME].fill_(float("nan"))), "not finite numbers in " + NAME),
        (_edit(lambda w: w[NAME].view(-1)[-1:].fill_(float("inf"))), "not finite numbers in " + NAME),
        (_edit(lambda w: w.update({NAME: w[NAME].to(torch.int32)})), NAME),
        (_edit(lambda w: w.update({NAME: w[NAME].T[1:].contiguous()})), NAME),
        (_edit(lambda w: w.pop(NAME)), NAME + " is missing"),
        (_edit(lambda w: w.update({"layers.2.host.weight": torch.zeros(2)})), "layers.2.host.weight is unknown"),
    ],
    ids=["cut", "cut header", "header", "longer", "gone", "nan", "inf", "integers", "shape", "missing", "unknown"],
)
def test_damaged_weights(damage: Callable[[Path], Any], says: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["sd2"], tmp_path / "adapter"))
    damage(folder / "adapter.safetensors")
    sentence = _refused(lambda: MoAAdapter.from_pretrained(folder))
    assert says in sentence and str(folder / "adapter.safetensors") in sentence


def test_every_cut_of_the_files_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["sd2"], tmp_path / "adapter"))
    for name in ("adapter.safetensors", "adapter_config.json"):
        data = (folder / name).read_bytes()
        for share in range(10):
            (folder / name).write_bytes(data[: len(data) * share // 10])
            assert name in _refused(lambda: MoAAdapter.from_pretrained(folder))
        (folder / name).write_bytes(data)
    MoAAdapter.from_pretrained(folder)


def test_grey_and_transparent_photos_are_persons_too(tmp_path: Path) -> None:
    """A grey photo is its RGB twin; what is transparent counts as the grey of a removed background."""
    tiny_clip(folder=tmp_path)
    case = tiny_case("sd1")
    adapter = trained_like(MoAAdapter.for_unet(case.pipe.unet, IMAGE_DIM)).attach(case.pipe, image_encoder=tmp_path)

    def drawn(photo: Image.Image) -> Tensor:
        return case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, {"man": photo}))

    grey = Image.linear_gradient("L").resize((40, 30))
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grey])
    mask = Image.new("L", grey.size)
    mask.paste(255, (8, 5, 30, 25))
    cut = colour.copy()
    cut.putalpha(mask)
    flat = Image.composite(colour, Image.new("RGB", grey.size, (127, 127, 127)), mask)
    sixteen = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    assert torch.equal(drawn(grey), drawn(grey.convert("RGB")))
    assert torch.equal(drawn(Image.merge("LA", [grey, Image.new("L", grey.size, 255)])), drawn(grey))
    assert torch.equal(drawn(sixteen), drawn(grey))
    assert torch.equal(drawn(cut), drawn(flat))
    assert not torch.allclose(drawn(cut), drawn(colour), atol=1e-4)
