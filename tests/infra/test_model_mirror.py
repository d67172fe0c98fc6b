"""Models in an object store, on a real S3 server."""

import hashlib
import threading
from pathlib import Path

import boto3
import pytest

from infra.errors import UserError
from infra.model_files import fingerprint, local_folder, resolve
from infra.model_mirror import CACHE, fetch_mirror, mirror_files, mirror_folder
from infra.settings import ModelReference
from infra.storage import S3Store

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer/tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "optimizer.pt": b"another",
}


@pytest.fixture
def mirror(s3_store: S3Store, s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_address)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    for name, content in FILES.items():
        s3_store.put(name, content)
    return f"s3://{s3_store.bucket}/{s3_store.prefix}"


def test_it_is_fetched_once_without_pickles(mirror: str, s3_store: S3Store) -> None:
    reference = ModelReference(location=mirror)
    location, arguments = resolve(reference, "clip")
    folder = Path(location)
    assert folder == mirror_folder(mirror) == local_folder(reference) and arguments == {}
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer/tokenizer.json"}
    before = fingerprint(reference)
    s3_store.delete("config.json")  # the store is not asked again
    assert resolve(reference, "clip")[0] == location and fingerprint(reference) == before
    # The same model has the same fingerprint as a folder, and a mirror may be pinned to it.
    assert fingerprint(ModelReference(location=location)) == before
    assert resolve(ModelReference(location=mirror, revision=before), "clip")[0] == location
    with pytest.raises(UserError, match="models.clip.revision says"):
        resolve(ModelReference(location=mirror, revision="0" * 64), "clip")


def test_an_interrupted_fetch_goes_on_and_two_at_once_agree(mirror: str) -> None:
    part = mirror_folder(mirror).with_name(f"{mirror_folder(mirror).name}.part")
    part.mkdir(parents=True)
    (part / "config.json").write_bytes(b"[]")  # of the right size: an earlier attempt checked it
    (part / "model.safetensors").write_bytes(b"half")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch_mirror(mirror))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [mirror_folder(mirror)] * 2 and not part.exists()
    assert (found[0] / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert (found[0] / "config.json").read_bytes() == b"[]"


def test_the_mirrors_own_digests_are_checked(mirror: str, s3_store: S3Store) -> None:
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in FILES.items()]
    s3_store.put("SHA256SUMS", "\n".join([*sums, f"{'0' * 64}  ../outside.json"]).encode())
    assert fetch_mirror(mirror).is_dir()
    other = f"{mirror}/again"
    for name, content in FILES.items():
        s3_store.put(f"again/{name}", content)
    s3_store.put("again/SHA256SUMS", f"{'0' * 64}  model.safetensors\n".encode())
    with pytest.raises(UserError, match="model.safetensors of .* is not the file that SHA256SUMS lists"):
        fetch_mirror(other)
    s3_store.put("again/SHA256SUMS", f"{'0' * 64}  absent.safetensors\n".encode())
    with pytest.raises(UserError, match="absent.safetensors, which is not there"):
        fetch_mirror(other)
    assert not mirror_folder(other).exists()


def test_what_is_not_there_is_told(mirror: str, s3_store: S3Store) -> None:
    assert [file.name for file in mirror_files(mirror)][0] == "model.safetensors"
    for location, says in [
        ("s3://", "names no bucket"),
        ("s3://no-such-bucket/x", "cannot be read"),
        (f"s3://{s3_store.bucket}/nowhere", "no .safetensors under"),
    ]:
        with pytest.raises(UserError, match=says):
            fetch_mirror(location)
    s3_store.put("bare/model.safetensors", b"w")
    with pytest.raises(UserError, match="no config.json"):
        resolve(ModelReference(location=f"{mirror}/bare"), "clip")


def test_nothing_is_written_outside_the_cache(mirror: str, s3_store: S3Store, s3_address: str) -> None:
    client = boto3.client("s3", endpoint_url=s3_address)
    client.put_object(Bucket=s3_store.bucket, Key="odd/a/../../outside.json", Body=b"{}")
    client.put_object(Bucket=s3_store.bucket, Key="odd/model.safetensors", Body=b"w")
    with pytest.raises(UserError, match="not a plain relative path"):
        fetch_mirror(f"s3://{s3_store.bucket}/odd")
