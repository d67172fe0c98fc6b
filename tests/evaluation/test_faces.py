"""Faces and FaceNet against facenet-pytorch's own pipeline, on a photograph of an astronaut (public domain)."""

from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN, InceptionResnetV1
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from evaluation.faces import FaceLocator, mtcnn_version
from evaluation.identity import FaceNetIdentity, crop_person, embed_people, identity_similarity
from evaluation.people import Found


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """One face; cut by two edges, another size; two faces, the larger one on the right; nobody."""
    photo = Image.fromarray(data.astronaut())
    smaller = photo.resize((200, 200), Image.Resampling.BICUBIC).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    both = Image.new("RGB", (712, 512))
    both.paste(smaller, (0, 100))
    both.paste(photo, (200, 0))
    nobody = Image.effect_noise((96, 96), 40).convert("RGB")
    return [photo, photo.crop((205, 70, 400, 300)), both, nobody]


@pytest.fixture(scope="module")
def detector() -> MTCNN:
    return MTCNN(
        image_size=160,
        margin=0,
        min_face_size=20,
        thresholds=[0.6, 0.7, 0.7],
        factor=0.709,
        post_process=True,
        keep_all=True,
    )


@pytest.fixture(scope="module")
def network(detector: MTCNN, pictures: list[Image.Image]) -> InceptionResnetV1:
    """Random weights; its batch norms have seen these faces, without which all faces would look alike to it."""
    torch.manual_seed(0)
    network = InceptionResnetV1(pretrained=None, classify=False).train()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.cat([faces for picture in pictures if (faces := detector(picture)) is not None]))
    return network.eval()


@pytest.fixture(scope="module")
def found(pictures: list[Image.Image]) -> list[list[Found]]:
    return FaceLocator()(pictures)


def test_faces_are_mtcnns_the_largest_first(pictures: list[Image.Image], found: list[list[Found]]) -> None:
    assert [len(faces) for faces in found] == [1, 1, 2, 0]
    assert found[2][0].box[0] > 300 and found[0][0].score > 0.99


def test_a_face_is_cut_as_mtcnn_cuts_it(pictures: list[Image.Image], found: list[list[Found]], detector: MTCNN) -> None:
    for picture, faces in zip(pictures[:3], found, strict=False):
        for face, theirs in zip(faces, detector(picture), strict=True):
            crop = crop_person(picture, face, FaceNetIdentity.crop)
            cut = np.asarray(crop.resize((160, 160), Image.Resampling.BILINEAR), np.float32)
            assert np.array_equal((cut.transpose(2, 0, 1) - 127.5) / 128, theirs.numpy())


def test_identity_is_the_fields_to_five_digits(
    pictures: list[Image.Image],
    found: list[list[Found]],
    detector: MTCNN,
    network: InceptionResnetV1,
    tmp_path: Path,
) -> None:
    """IP as published: the first face of either picture, dot product of unit embeddings, at least 0; no face is 0."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items() if "logits" not in name}
    save_file(state, tmp_path / "vggface2.safetensors")
    vectors = embed_people(pictures, found, FaceNetIdentity(tmp_path))

    @torch.no_grad()
    def published(picture: Image.Image) -> torch.Tensor | None:
        faces = detector(picture)
        return None if faces is None else network(faces[:1])[0]

    theirs = [published(picture) for picture in pictures]
    seen = set()
    for row, one in enumerate(theirs):
        for column in range(3):
            ours = identity_similarity(vectors[row : row + 1], vectors[column : column + 1])[0]
            reference = theirs[column]
            assert reference is not None
            wanted = 0.0 if one is None else max(0.0, float(one @ reference))
            assert ours == pytest.approx(wanted, abs=1e-5)
            seen.add(round(wanted, 2))
    assert len(seen) > 4 and 0.0 in seen, f"the test can tell one face from another: {seen}"


def test_pictures_too_small_for_a_face_show_nobody() -> None:
    assert FaceLocator()([Image.new("RGB", (20, 400))]) == [[]]


def test_mtcnn_says_which_it_is() -> None:
    name, sha256 = mtcnn_version()
    assert name.startswith("facenet-pytorch 2.") and len(sha256) == 64
