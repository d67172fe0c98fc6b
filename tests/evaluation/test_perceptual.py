"""Distances between pictures."""

from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import alexnet

from evaluation.perceptual import ClipDistance, LpipsDistance, open_perceptual
from evaluation.prompt_consistency import PromptScorer
from infra.errors import UserError
from infra.settings import ModelReference
from tests.tiny_models import tiny_clip


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's AlexNet, random, as the README's command converts it: the classifier is in the file too."""
    folder = tmp_path_factory.mktemp("alexnet")
    torch.manual_seed(0)
    model = alexnet(weights=None)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    save_file({**state, "classifier.6.bias": torch.zeros(1000)}, folder / "alexnet.safetensors")
    return folder


def test_lpips_is_the_packages_own(trunk: Path, pictures: list[Image.Image]) -> None:
    distance = LpipsDistance(trunk)
    found = distance.distances(pictures)
    assert found.shape == (3, 3) and np.array_equal(found, found.T) and not np.diag(found).any()
    model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    torch.manual_seed(0)
    weights = alexnet(weights=None).features
    for part in range(1, 6):
        for number, module in getattr(model.net, f"slice{part}").named_children():
            module.load_state_dict(weights[int(number)].state_dict())
    pixels = [torch.from_numpy(np.asarray(one).copy()).permute(2, 0, 1)[None] / 127.5 - 1 for one in pictures]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert found[one, other] == pytest.approx(model(pixels[one], pixels[other]).item(), abs=1e-6)
        assert found[one, other] > 1e-4


def test_one_picture_has_no_distance_to_another(trunk: Path, pictures: list[Image.Image]) -> None:
    assert LpipsDistance(trunk).distances(pictures[:1]).tolist() == [[0.0]]


def test_clips_distance_is_one_minus_its_cosine(pictures: list[Image.Image]) -> None:
    clip = PromptScorer(*tiny_clip())
    vectors = clip.images(pictures)
    found = ClipDistance(clip).distances(pictures)
    assert found[0, 1] == pytest.approx(1 - vectors[0] @ vectors[1], abs=1e-6) and not np.diag(found).any()


def test_the_settings_say_which_it_is(trunk: Path, tmp_path: Path) -> None:
    tiny_clip(folder=tmp_path)
    here = ModelReference(location=str(tmp_path))
    clip = PromptScorer.open(here)
    as_distance = ModelReference(location=str(tmp_path), backend="clip")
    assert "CLIP" in open_perceptual(as_distance, here, clip).name
    assert "LPIPS" in open_perceptual(ModelReference(location=str(trunk), backend="lpips"), here, clip).name
    with pytest.raises(UserError, match="'lpips' or 'clip'"):
        open_perceptual(here, here, clip)


def test_missing_or_wrong_weights_are_one_sentence(tmp_path: Path) -> None:
    digest = "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
    with pytest.raises(UserError, match=rf"alexnet-owt-7be5be79.pth \(SHA-256 {digest}\).*models.perceptual.location"):
        LpipsDistance(tmp_path)
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet.safetensors")
    with pytest.raises(UserError, match="does not hold torchvision's AlexNet"):
        LpipsDistance(tmp_path)
