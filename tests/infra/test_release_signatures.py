"""Sign, mutate, and it must fail; and model-signing's own command agrees."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.blobs import describe_bytes
from infra.errors import UserError
from infra.manifest import Manifest, describe_name, make_manifest, to_json
from infra.pulling import pull_from
from infra.registry import Releases
from infra.release_cache import CACHE
from infra.release_signatures import (
    PASSPHRASE,
    BadSignature,
    Signer,
    Verifier,
    find_signature,
    make_keys,
    require_signature,
    signature_key,
    signers,
)
from infra.storage import DirectoryStore, ObjectStore
from infra.upkeep import collect_garbage, find_garbage, verify

FILES = {"README.md": b"a card", "adapter.bin": bytes(range(256)) * 9, "texts/lineage.bin": b"more"}
DATA = Path(__file__).parents[1] / "data"


def manifest_of(files: dict[str, bytes], model: str = "moa") -> Manifest:
    return make_manifest(model, [describe_name(name, describe_bytes(data)) for name, data in files.items()])


@pytest.fixture(autouse=True)
def _own_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv(PASSPHRASE, raising=False)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    make_keys(path)
    return path


@pytest.fixture(scope="module")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "other"
    make_keys(path)
    return path


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def command(folder: Path, key: Path) -> int:
    """Model-signing's own verification, in a process that knows nothing of ours."""
    arguments = ["verify", "key", str(folder), "--signature", str(folder / "model.sig"), "--public_key", str(key)]
    ran = subprocess.run([sys.executable, "-m", "model_signing", *arguments], capture_output=True, cwd=folder.parent)
    return ran.returncode


# ---- a signature alone


def test_a_signature_is_of_one_key_and_one_release(key: Path, other_key: Path) -> None:
    manifest = manifest_of(FILES)
    signature = Signer(key).sign(manifest)
    Verifier(public(key)).check(signature, manifest)
    assert Signer(key).key_id == Verifier(public(key)).key_id != Verifier(public(other_key)).key_id
    with pytest.raises(BadSignature, match="by another key"):
        Verifier(public(other_key)).check(signature, manifest)
    others = [{**FILES, "adapter.bin": b"x"}, {**FILES, "more.bin": b""}, dict(list(FILES.items())[:-1])]
    renamed = {"README.md": FILES["README.md"], "weights.bin": FILES["adapter.bin"], "texts/lineage.bin": b"more"}
    swapped = {**FILES, "README.md": FILES["adapter.bin"], "adapter.bin": FILES["README.md"]}
    for other in [*map(manifest_of, [*others, renamed, swapped]), manifest_of(FILES, "another-model")]:
        with pytest.raises(BadSignature, match="not one of these files"):
            Verifier(public(key)).check(signature, other)


def test_whoever_claims_to_be_the_key_is_not_believed(key: Path, other_key: Path) -> None:
    """The other key's signature under this one's name."""
    manifest = manifest_of(FILES)
    forged = Signer(other_key).sign(manifest).replace(Signer(other_key).key_id.encode(), Signer(key).key_id.encode())
    with pytest.raises(BadSignature, match="not one of these files"):
        Verifier(public(key)).check(forged, manifest)


def refused(verifier: Verifier, signature: bytes, manifest: Manifest) -> bool:
    try:
        verifier.check(signature, manifest)
    except BadSignature:
        return True
    return False


def test_every_changed_byte_of_a_signature_is_refused(key: Path) -> None:
    manifest, verifier = manifest_of({"a": b"b"}), Verifier(public(key))
    signature = Signer(key).sign(manifest)
    for place in range(len(signature)):
        changed = bytearray(signature)
        changed[place] ^= 1 << place % 8
        assert refused(verifier, bytes(changed), manifest), (place, bytes(changed))


def test_every_cut_and_every_addition_is_refused(key: Path) -> None:
    manifest, verifier = manifest_of({"a": b"b"}), Verifier(public(key))
    signature = Signer(key).sign(manifest)
    for place in range(len(signature)):
        assert refused(verifier, signature[:place], manifest)
    for more in (b" ", b"\n", b"\0", signature):
        assert refused(verifier, signature + more, manifest) and refused(verifier, more + signature, manifest)


def _payload(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    def changing(bundle: dict[str, Any]) -> None:
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(payload)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

    return changing


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: bundle.update(mediaType="application/json"),
        lambda bundle: bundle.update(more=1),
        lambda bundle: bundle["verificationMaterial"].update(tlogEntries=[{}]),
        lambda bundle: bundle["verificationMaterial"]["publicKey"].pop("hint"),
        lambda bundle: bundle["verificationMaterial"]["publicKey"].update(hint=None),
        lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
        lambda bundle: bundle["dsseEnvelope"]["signatures"].append(bundle["dsseEnvelope"]["signatures"][0]),
        lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(keyid="1"),
        lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig=""),
        lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig=[]),
        lambda bundle: bundle["dsseEnvelope"].update(payload=""),
        lambda bundle: bundle["dsseEnvelope"].update(payload="ä"),
        lambda bundle: bundle["dsseEnvelope"].update(payload=bundle["dsseEnvelope"]["payload"] + "\n"),
        lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"),
        _payload(lambda payload: None),  # the same in another form
        _payload(lambda payload: payload["predicate"]["resources"].pop()),
        _payload(lambda payload: payload["predicate"]["serialization"]["ignore_paths"].append("adapter.bin")),
        _payload(lambda payload: payload.update(predicateType="https://model_signing/Digests/v0.1")),
    ],
)
def test_what_is_no_signature_of_ours_is_refused(key: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = manifest_of(FILES)
    bundle = json.loads(Signer(key).sign(manifest))
    change(bundle)
    assert refused(Verifier(public(key)), to_json(bundle), manifest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@settings(max_examples=150)
@given(data=st.binary(max_size=300) | JSON.map(to_json) | st.integers(1, 20000).map(lambda depth: b"[" * depth))
def test_any_bytes_are_refused_and_nothing_else_happens(key: Path, data: bytes) -> None:
    assert refused(Verifier(public(key)), data, manifest_of({"a": b"b"}))


_FIELDS = [
    "mediaType", "verificationMaterial", "verificationMaterial publicKey", "verificationMaterial publicKey hint",
    "verificationMaterial tlogEntries", "dsseEnvelope", "dsseEnvelope payload", "dsseEnvelope payloadType",
    "dsseEnvelope signatures", "dsseEnvelope signatures 0", "dsseEnvelope signatures 0 sig",
    "dsseEnvelope signatures 0 keyid",
]  # fmt: skip


@settings(max_examples=100)
@given(value=JSON, field=st.sampled_from(_FIELDS))
def test_whatever_stands_in_a_field_is_refused(key: Path, value: object, field: str) -> None:
    manifest = manifest_of({"a": b"b"})
    inner = bundle = json.loads(Signer(key).sign(manifest))
    *steps, last = (int(step) if step.isdigit() else step for step in field.split())
    for step in steps:
        inner = inner[step]
    if inner[last] != value:
        inner[last] = value
        assert refused(Verifier(public(key)), to_json(bundle), manifest)


# ---- keys


def test_a_key_is_private_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    assert make_keys(path) == public(path) and path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes(), public(path).read_bytes()
    with pytest.raises(UserError, match="never replaced"):
        make_keys(path)
    path.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"key\.pub is there already"):
        make_keys(path)
    assert ((tmp_path / "moved").read_bytes(), public(path).read_bytes()) == before
    assert not path.exists()  # no half of a pair
    with pytest.raises(UserError, match="cannot be written"):
        make_keys(tmp_path / "nowhere" / "key")


def test_a_passphrase_protects_the_key_and_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE, "a long sécret")
    make_keys(tmp_path / "key")
    make_keys(tmp_path / "unlike")
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    manifest = manifest_of(FILES)
    Verifier(tmp_path / "key.pub").check(Signer(tmp_path / "key").sign(manifest), manifest)
    said = []
    for passphrase in ("another sécret", ""):
        monkeypatch.setenv(PASSPHRASE, passphrase)
        with pytest.raises(UserError, match=PASSPHRASE) as refusal:
            Signer(tmp_path / "key")
        said.append(str(refusal.value))
    monkeypatch.setenv(PASSPHRASE, "")
    make_keys(tmp_path / "open")
    monkeypatch.setenv(PASSPHRASE, "a third sécret")
    with pytest.raises(UserError, match="not encrypted") as refusal:
        Signer(tmp_path / "open")
    assert "sécret" not in " ".join([*said, str(refusal.value)])


def test_what_is_no_key_is_one_sentence(key: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    with pytest.raises(UserError, match="is no public key"):
        Verifier(key)
    with pytest.raises(UserError, match="is no private key"):
        Signer(public(key))
    for made in (Signer, Verifier):
        with pytest.raises(UserError, match="cannot be read"):
            made(tmp_path / "none")
        with pytest.raises(UserError, match="cannot be read"):
            made(tmp_path)
    (tmp_path / "text").write_bytes(b"-----BEGIN PUBLIC KEY-----\n")
    with pytest.raises(UserError, match="is no public key"):
        Verifier(tmp_path / "text")
    for made_key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        pem = made_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (tmp_path / "unlike.pub").write_bytes(pem)
        with pytest.raises(UserError, match="P-256"):
            Verifier(tmp_path / "unlike.pub")


# ---- in a registry


def test_a_release_is_signed_before_it_is_there(store: ObjectStore, key: Path) -> None:
    seen = []

    def create(name: str, data: bytes, real: Callable[[str, bytes], bool] = store.create) -> bool:
        if name.startswith("releases/"):
            seen.append([one for one in store.list() if one.startswith("signatures/")])
        return real(name, data)

    store.create = create  # type: ignore[method-assign]
    releases = Releases(store)
    release = releases.publish(FILES, {}, signer=Signer(key))
    manifest = releases.manifest(release)
    assert seen == [[signature_key(manifest, Signer(key).key_id)]] and signers(store, manifest) == [Signer(key).key_id]
    assert releases.publish(FILES, {}, signer=Signer(key)) == release and len(releases.all()) == 1
    assert verify(releases, None, verifier=Verifier(public(key))) == []
    assert Releases(store, "moa", Verifier(public(key))).read(release, "README.md") == b"a card"


def test_a_key_that_is_named_must_have_signed(store: ObjectStore, key: Path, other_key: Path, tmp_path: Path) -> None:
    releases, ours = Releases(store), Verifier(public(key))
    release = releases.publish(FILES, {})
    for directory in (tmp_path / "out", None):
        with pytest.raises(UserError, match="moa@1 is not signed with") as refusal:
            pull_from(store, "1", "", directory, key=public(key))
        assert "moa releases sign moa@1" in str(refusal.value)
    with pytest.raises(UserError, match="is not signed"):
        Releases(store, "moa", ours).read(release, "README.md")
    [damage] = verify(releases, [1], verifier=ours)
    assert "is not signed" in damage.problem and verify(releases, [1]) == []
    releases.sign(release, Signer(other_key))
    with pytest.raises(UserError, match="is not signed"):
        pull_from(store, "1", "", tmp_path / "out", key=public(key))
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out*")) == []
    releases.sign(release, Signer(key))
    for verifying in (key, other_key):  # each for itself
        pulled = pull_from(store, "1", "", tmp_path / "out", key=public(verifying))
        assert pulled.signed and pulled.folder == tmp_path / "out" and command(tmp_path / "out", public(verifying)) == 0
    assert not pull_from(store, "1", "", tmp_path / "out").signed


def test_a_signature_of_another_release_or_a_changed_one_is_refused(
    store: ObjectStore, key: Path, tmp_path: Path
) -> None:
    releases, signer = Releases(store), Signer(key)
    one, two = (releases.publish({"adapter.bin": data}, {}, signer=signer) for data in (b"1", b"2"))
    places = [signature_key(releases.manifest(release), signer.key_id) for release in (one, two)]
    good = store.get(places[0])
    longer = b"[" * 3_000_000
    for bad in (store.get(places[1]), good[:-1], good.replace(b'"keyid": ""', b'"keyid": "x"'), b"", longer):
        store.put(places[0], bad)
        with pytest.raises(UserError, match=r"does not count|is not signed"):
            pull_from(store, "1", "", tmp_path / "out", key=public(key))
        assert len(verify(releases, [1], verifier=Verifier(public(key)))) == 1
        pull_from(store, "1", "", tmp_path / f"digests-{len(bad)}")  # who names no key is told nothing of keys
    releases.publish({"adapter.bin": b"1"}, {}, signer=signer)  # puts it right
    assert pull_from(store, "1", "", tmp_path / "out", key=public(key)).signed


def test_a_pulled_folder_is_verified_offline_by_model_signing_alone(key: Path, other_key: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    Releases(store).publish(FILES, {}, signer=Signer(key))
    folder = pull_from(store, "1", "", tmp_path / "out").folder  # no key is needed to bring the signature along
    shutil.rmtree(tmp_path / "store")
    assert command(folder, public(key)) == 0 and command(folder, public(other_key)) != 0
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.unlink()
        if path.name == "adapter.bin":
            assert command(folder, public(key)) != 0
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        if path.name != "model.sig":  # whose last byte is a line end, which means nothing to model-signing
            assert command(folder, public(key)) != 0
        path.write_bytes(data)
    (folder / "more").write_bytes(b"")
    assert command(folder, public(key)) != 0
    (folder / "more").unlink()
    assert command(folder, public(key)) == 0


@pytest.mark.parametrize("changed", ["README.md", "adapter.bin", "texts/lineage.bin", "manifest.json", "model.sig"])
def test_every_changed_file_of_a_signed_release_is_refused_or_brought_anew(
    key: Path, tmp_path: Path, changed: str
) -> None:
    store = DirectoryStore(tmp_path / "store")
    Releases(store).publish(FILES, {}, signer=Signer(key))
    folder = pull_from(store, "1", "", tmp_path / "out", key=public(key)).folder
    data = (folder / changed).read_bytes()
    for place in {0, len(data) // 2, len(data) - 1}:
        (folder / changed).unlink()
        (folder / changed).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        if changed == "model.sig":  # the registry's own is verified, and laid there
            pull_from(store, "1", "", folder, key=public(key))
        else:
            with pytest.raises(UserError, match="is not an empty folder"):
                pull_from(store, "1", "", folder, key=public(key))
            pull_from(store, "1", "", folder, key=public(key), update=True)
        assert (folder / changed).read_bytes() == data


def test_offline_the_signature_is_known_and_verified(key: Path, other_key: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    Releases(store).publish(FILES, {}, signer=Signer(key))
    pull_from(store, "1", "", tmp_path / "out", key=public(key))
    assert pull_from(store, "1", "", tmp_path / "again", key=public(key), offline=True).signed
    with pytest.raises(UserError, match="is not signed"):
        pull_from(store, "1", "", tmp_path / "other", key=public(other_key), offline=True)
    [known] = Path(os.environ[CACHE]).rglob("signatures/*.json")
    known.write_bytes(known.read_bytes()[:-1] + b" ")
    with pytest.raises(UserError, match="does not count"):
        pull_from(store, "1", "", tmp_path / "other", key=public(key), offline=True)


def test_a_release_of_before_is_read_as_ever_and_can_be_signed(store: ObjectStore, key: Path, tmp_path: Path) -> None:
    before = DATA / "registry-of-before"
    for path in before.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(before).as_posix(), path.read_bytes())
    releases = Releases(store)
    assert not pull_from(store, "production", "", tmp_path / "out").signed
    with pytest.raises(UserError, match="is not signed"):
        pull_from(store, "production", "", tmp_path / "signed", key=public(key))
    releases.sign(releases.resolve("production"), Signer(key))
    assert pull_from(store, "production", "", tmp_path / "signed", key=public(key)).signed
    assert command(tmp_path / "signed", public(key)) == 0


def test_garbage_is_a_signature_of_no_release(tmp_path: Path, key: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    releases = Releases(store)
    release = releases.publish(FILES, {}, signer=Signer(key))
    left = signature_key(manifest_of({"never": b"published"}), Signer(key).key_id)
    store.put(left, b"{}")
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (1, 1))
    garbage = find_garbage(store)
    assert list(garbage.objects) == [left] and collect_garbage(store, garbage) == 1
    assert find_signature(store, releases.manifest(release), Signer(key).key_id)


def test_a_collection_before_the_manifest_is_there_loses_no_signature(tmp_path: Path, key: Path) -> None:
    store = DirectoryStore(tmp_path / "store")

    def create(name: str, data: bytes, real: Callable[[str, bytes], bool] = store.create) -> bool:
        for one in store.list("signatures/") if name.startswith("releases/") else ():
            store.delete(one)
        return real(name, data)

    store.create = create  # type: ignore[method-assign]
    releases = Releases(store)
    release = releases.publish(FILES, {}, signer=Signer(key))
    found = find_signature(store, releases.manifest(release), Signer(key).key_id)
    require_signature(found, releases.manifest(release), Verifier(public(key)), "moa@1")


def test_nothing_heavy_comes_without_a_key() -> None:
    heavy = {"model_signing", "cryptography", "sigstore"}
    code = f"import sys, infra.pulling; print(sorted({heavy} & sys.modules.keys()))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
