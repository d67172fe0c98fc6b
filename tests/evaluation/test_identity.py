import json
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1
from PIL import Image
from safetensors.torch import save_file
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

from evaluation.identity import (
    GREY,
    CropRule,
    FaceNetIdentity,
    crop_person,
    embed_everybody,
    embed_people,
    identity_similarity,
    open_identity_encoder,
)
from evaluation.people import Found
from infra.errors import UserError
from infra.settings import ModelReference


def picture(seed: int, size: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identity")
    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
    model.eval().save_pretrained(path)
    half = [0.5, 0.5, 0.5]
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0, image_mean=half, image_std=half).save_pretrained(
        path
    )
    config = json.loads((path / "config.json").read_text())
    config["crop"] = {"margin": 0.25, "background": "keep"}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_encoder_gives_unit_vectors_and_the_crop_it_was_trained_on(folder: Path) -> None:
    encoder = open_identity_encoder(ModelReference(location=str(folder)))
    vectors = encoder.embed([picture(0), picture(1, size=48), picture(0)])
    assert vectors.shape == (3, 12)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert encoder.crop == CropRule(margin=0.25, background="keep")
    same, other = identity_similarity(vectors[:1], vectors[2:])[0], identity_similarity(vectors[:1], vectors[1:2])[0]
    assert same == pytest.approx(1, abs=1e-5)
    assert other < same


def test_nobody_found_scores_zero(folder: Path) -> None:
    encoder = open_identity_encoder(ModelReference(location=str(folder)))
    images, face = [picture(0), picture(1), picture(0)], Found(box=(4.0, 4.0, 28.0, 28.0))
    vectors = embed_people(images, [[face], [], [face]], encoder, batch_size=1)
    assert not vectors[1].any()
    references = np.repeat(vectors[:1], 3, axis=0)
    assert identity_similarity(vectors, references) == pytest.approx([1, 0, 1], abs=1e-5)
    nobody = embed_people(images, [[], [], []], encoder)
    assert identity_similarity(nobody, references).tolist() == [0, 0, 0]


def test_similarity_is_clamped_at_zero() -> None:
    assert identity_similarity(np.array([[1.0, 0.0]]), np.array([[-2.0, 0.0]])).tolist() == [0.0]


def test_crop_is_square_with_grey_around_the_person() -> None:
    image = Image.new("RGB", (20, 20), "red")
    mask = np.zeros((20, 20), bool)
    mask[10:20, 4:8] = True
    crop = crop_person(image, Found.from_mask(mask), CropRule(margin=0.0))
    assert crop.size == (10, 10)
    pixels = np.asarray(crop)
    assert (pixels[:, 3:7] == (255, 0, 0)).all()
    assert (pixels[:, :3] == GREY).all() and (pixels[:, 7:] == GREY).all()
    kept = np.asarray(crop_person(image, Found.from_mask(mask), CropRule(margin=0.5, background="keep")))
    assert kept.shape == (20, 20, 3)
    assert (kept[:15, 5:] == (255, 0, 0)).all(), "inside the picture the background stays"
    assert (kept[15:] == GREY).all(), "below the picture's edge there is nothing"
    assert crop_person(image, None, CropRule()).size == (20, 20)


def test_everybody_is_embedded_in_order_whatever_the_batch(folder: Path) -> None:
    encoder = open_identity_encoder(ModelReference(location=str(folder)))
    left, right = Found(box=(0.0, 0.0, 16.0, 16.0)), Found(box=(12.0, 12.0, 32.0, 32.0))
    images, people = [picture(0), picture(1), picture(2)], [[left, right], [], [right]]
    found = embed_everybody(images, people, encoder, batch_size=2)
    assert [len(vectors) for vectors in found] == [2, 0, 1]
    alone = embed_everybody(images[2:], people[2:], encoder)
    assert found[2] == pytest.approx(alone[0], abs=1e-5)
    assert found[0][0] == pytest.approx(embed_people(images[:1], people[:1], encoder)[0], abs=1e-5)
    assert [len(vectors) for vectors in embed_everybody(images, [[], [], []], encoder)] == [0, 0, 0]


def test_a_box_is_cut_in_whole_pixels_inside_the_picture() -> None:
    pixels = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)
    crop = crop_person(Image.fromarray(pixels), Found(box=(-2.5, 3.9, 7.2, 30.0)), CropRule(shape="box"))
    assert np.array_equal(np.asarray(crop), pixels[3:20, 0:7])


def test_facenet_reads_a_safetensors_conversion_and_ignores_the_training_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = InceptionResnetV1(pretrained=None, classify=False).eval()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if "logits" not in name}
    save_file(state | {"logits.weight": torch.zeros(8631, 512)}, tmp_path / "vggface2.safetensors")
    encoder = open_identity_encoder(ModelReference(location=str(tmp_path), backend="facenet"))
    image = picture(0, size=160)
    vector = encoder.embed([image])[0]
    with torch.inference_mode():
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() - 127.5) / 128
        assert vector == pytest.approx(model(pixels)[0].numpy(), abs=1e-5)


def test_facenet_says_how_to_place_its_weights(tmp_path: Path) -> None:
    known = r"20180402-114759-vggface2.pt \(SHA-256 281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b\)"
    with pytest.raises(UserError, match=known + r".*evaluation/README.md.*models.identity.location"):
        FaceNetIdentity(tmp_path / "vggface2.safetensors")
    (tmp_path / "20180402-114759-vggface2.pt").write_bytes(b"a pickle")
    with pytest.raises(UserError, match="never loaded"):
        FaceNetIdentity(tmp_path / "20180402-114759-vggface2.pt")
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold"):
        FaceNetIdentity(tmp_path / "other.safetensors")


def test_unknown_backend_names_the_choices() -> None:
    with pytest.raises(UserError, match="'transformers' or 'facenet'"):
        open_identity_encoder(ModelReference(location="x", backend="onnx"))
