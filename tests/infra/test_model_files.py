import hashlib
import os
import re
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.model_files import PUBLISHED, fingerprint, folder_here, resolve, weights_digest, weights_needed
from infra.settings import ModelReference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _model(folder: Path, weights: bytes = b"w") -> ModelReference:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return ModelReference(location=str(folder))


def test_a_folder_is_found_and_a_hub_id_keeps_its_commit(tmp_path: Path) -> None:
    reference = _model(tmp_path / "m")
    assert resolve(reference, "clip") == (str(tmp_path / "m"), {})
    assert resolve(ModelReference(location="openai/clip", revision=COMMIT), "clip") == (
        "openai/clip",
        {"revision": COMMIT},
    )


def test_a_folder_that_looks_like_a_hub_id_is_a_folder_unless_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _model(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve(ModelReference(location="owner/name"), "clip") == (str(tmp_path / "owner" / "name"), {})
    assert resolve(ModelReference(location="owner/name", revision=COMMIT), "clip")[1] == {"revision": COMMIT}


def test_what_is_here_is_found_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MOA_MODEL_CACHE", str(tmp_path / "mirrors"))
    assert folder_here(_model(tmp_path / "m")) == tmp_path / "m"
    of_the_hub = ModelReference(location="owner/name", revision=COMMIT)
    for absent in (of_the_hub, ModelReference(location="/absent"), ModelReference(location="s3://bucket/model")):
        assert folder_here(absent) is None
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert folder_here(of_the_hub) == snapshot
    assert folder_here(ModelReference(location="owner/name", revision="0" * 40)) is None


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (ModelReference(location="zoo:absent"), "clip 'zoo:absent' is not at .*the zoo has"),
        (ModelReference(location="/absent"), "is not at /absent: .*models.clip.location"),
        (ModelReference(location="owner/name"), "pinned commit: set models.clip.revision"),
        (ModelReference(location="owner/name", revision="main"), "pinned commit"),
    ],
)
def test_a_missing_model_says_what_to_do(reference: ModelReference, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(reference, "clip")


def test_a_half_copied_folder_is_noticed(tmp_path: Path) -> None:
    reference = _model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        resolve(reference, "clip")
    with pytest.raises(UserError, match="no model_index.json"):
        resolve(ModelReference(location=str(tmp_path), backend="diffusers"), "base")


def test_a_parts_fingerprint_follows_that_part_alone(tmp_path: Path) -> None:
    model = _model(tmp_path / "1")
    for part in ("vae", "tokenizer"):
        (tmp_path / "1" / part).mkdir()
        (tmp_path / "1" / part / "config.json").write_text(part)
    vae, tokenizer = fingerprint(model, ["vae"]), fingerprint(model, ["tokenizer"])
    assert len({vae, tokenizer, fingerprint(model), fingerprint(model, ["vae", "tokenizer"])}) == 4
    (tmp_path / "1" / "vae" / "config.json").write_text("another")
    assert fingerprint(model, ["vae"]) != vae and fingerprint(model, ["tokenizer"]) == tokenizer


def test_a_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    one, same, other = _model(tmp_path / "1"), _model(tmp_path / "2"), _model(tmp_path / "3", b"v")
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    (tmp_path / "1" / ".DS_Store").write_bytes(b"")
    assert fingerprint(one) == fingerprint(same)
    path = tmp_path / "2" / "model.safetensors"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, 1))
    assert fingerprint(one) != fingerprint(same)
    path.rename(path.with_name("other.safetensors"))
    path.with_name("other.safetensors").write_bytes(b"w")
    assert fingerprint(one) != fingerprint(same)
    assert fingerprint(ModelReference(location="a/b", revision=COMMIT)) == f"a/b@{COMMIT}"


@pytest.mark.parametrize(
    ("backend", "name", "published"),
    [
        ("facenet", "vggface2.safetensors", "20180402-114759-vggface2.pt"),
        ("lpips", "alexnet.safetensors", "alexnet-owt-7be5be79.pth"),
    ],
)
def test_converted_weights_are_a_file_or_the_folder_around_it(
    tmp_path: Path, backend: str, name: str, published: str
) -> None:
    file = tmp_path / name
    references = [ModelReference(location=str(place), backend=backend) for place in (tmp_path, file)]
    advice = re.escape(f"{published} (SHA-256 {PUBLISHED[published]})") + ".*evaluation/README.md.*models.kind.location"
    for reference in references:
        with pytest.raises(UserError, match=advice):
            resolve(reference, "kind")
    file.write_bytes(b"one")
    assert [resolve(reference, "identity") for reference in references] == [(str(file), {})] * 2
    before = {fingerprint(reference) for reference in references}
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert len(before) == 1 and before.isdisjoint(fingerprint(reference) for reference in references)


def test_the_digest_of_weights_is_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    reference = ModelReference(location=str(folder))
    assert weights_digest(reference) == hashlib.sha256(b"weights").hexdigest()
    (folder / "other.safetensors").write_bytes(b"more")
    assert weights_digest(reference) == fingerprint(reference), "of several, all files' names and bytes"
    assert weights_digest(ModelReference(location="nobody/nothing", revision=COMMIT)) == ""


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    reference = ModelReference(location=str(tmp_path))
    with pytest.raises(UserError, match=f"The judge's model.safetensors of {tmp_path} cannot be read .no such file"):
        with weights_needed(reference, "judge"):
            raise OSError("no such\n   file")
    clip = ModelReference(location="openai/clip-vit-large-patch14", revision=COMMIT)
    with pytest.raises(UserError, match=rf"SHA-256 a2bf730a.*: hf download openai/.* --revision {COMMIT}"):
        with weights_needed(clip, "clip"):
            raise OSError("offline")
