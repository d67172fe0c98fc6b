"""Signatures of releases, by OpenSSF model-signing: whose key vouches for exactly these files.

    signatures/{manifest's SHA-256}/{public key's SHA-256}.json     a Sigstore bundle, as model-signing reads it

It signs name and SHA-256 of each file and of the manifest, so that it fits a pulled folder, where it lies as model.sig:

    model_signing verify key DIR --signature DIR/model.sig --public_key KEY.pub

It is written before the manifest, so who sees a release sees its signature. Each key has a place of its own: nobody
can keep another one from signing, and a new key takes over by signing again. A signature has one form, byte for byte:
what else could be changed in it, be it a space, is refused, too.

It does not say which number a release has nor what a name points at: who can write into the registry can let
`production` point at another release that the same key signed.
"""

import base64
import binascii
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from infra.errors import UserError
from infra.manifest import MANIFEST, SIGNATURE, BadManifest, Manifest, parse_json, to_json
from infra.storage import ObjectStore, TooLarge

PASSPHRASE = "MOA_SIGNING_PASSPHRASE"  # the environment variable that has the private key's
FOLDER = "signatures/"
MAX_BYTES = 2 * 2**20  # three times what a thousand files with the longest names need
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those of model-signing


class BadSignature(ValueError):
    """Why a signature does not count, as the end of a sentence."""


class Verifier:
    """A public key: does a signature of this key fit a release?"""

    def __init__(self, key: str | Path) -> None:
        """Raises UserError where the file has no public key that model-signing takes."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self.path = Path(key).expanduser().absolute()
        data = _read_key(self.path)
        try:
            public = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UserError(f"{self.path} is no public key: name the .pub that moa releases keygen wrote.") from error
        _check_curve(self.path, public)
        self.key_id = _key_id(public)

    def check(self, data: bytes, manifest: Manifest) -> None:
        """Raises BadSignature unless the bytes are this key's signature of exactly this release."""
        self._check_form(data)
        import model_signing

        with tempfile.TemporaryDirectory(prefix="moa-signature-") as folder:
            path = Path(folder, SIGNATURE)
            path.write_bytes(data)
            verifying = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=self.path)
            try:
                verifying.set_hashing_config(cast(Any, _Digests(manifest))).verify(folder, path)
            except Exception as error:  # it raises what its parsers raise; whatever it is, nothing was verified
                raise BadSignature("it is not one of these files") from error

    def _check_form(self, data: bytes) -> None:
        try:
            value = parse_json(data, MAX_BYTES)
            by = value["verificationMaterial"]["publicKey"]["hint"]
            payload = value["dsseEnvelope"]["payload"]
            signature = value["dsseEnvelope"]["signatures"][0]["sig"]
            one_form = to_json(_bundle(by, *(_base64(base64.b64decode(text)) for text in (payload, signature))))
        except (BadManifest, LookupError, TypeError, AttributeError, ValueError, binascii.Error) as error:
            raise BadSignature("it is damaged") from error
        if one_form != data:
            raise BadSignature("it is damaged")
        if by != self.key_id:
            raise BadSignature("it is by another key")


class Signer:
    """A private key."""

    def __init__(self, key: str | Path) -> None:
        """Raises UserError where the file has no private key that model-signing takes, or its passphrase is missing."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.path = Path(key).expanduser().absolute()
        self._passphrase = os.environ.get(PASSPHRASE, "").encode() or None
        data = _read_key(self.path)
        try:
            public = load_pem_private_key(data, self._passphrase).public_key()
        except TypeError as error:  # an encrypted key and no passphrase, or the other way round
            mend = f"unset {PASSPHRASE}" if self._passphrase else f"put its passphrase into {PASSPHRASE}"
            state = "not encrypted" if self._passphrase else "encrypted"
            raise UserError(f"The private key {self.path} is {state}: {mend}.") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            wrong = f", or {PASSPHRASE} has the wrong passphrase" if self._passphrase else ""
            raise UserError(f"{self.path} is no private key{wrong}: moa releases keygen makes one.") from error
        _check_curve(self.path, public)
        self.key_id = _key_id(public)

    def sign(self, manifest: Manifest) -> bytes:
        """The signature of a release."""
        import model_signing

        with tempfile.TemporaryDirectory(prefix="moa-signature-") as folder:
            path = Path(folder, SIGNATURE)
            # Its annotation says str, what it hands the passphrase to takes bytes alone.
            signing = model_signing.signing.Config().use_elliptic_key_signer(
                private_key=self.path, password=cast(Any, self._passphrase)
            )
            signing.set_hashing_config(cast(Any, _Digests(manifest))).sign(folder, path)
            envelope = parse_json(path.read_bytes())["dsseEnvelope"]
        return to_json(_bundle(self.key_id, envelope["payload"], envelope["signatures"][0]["sig"]))


def make_keys(path: Path) -> Path:
    """A new private key at the path, encrypted where the environment has a passphrase; its public key's path.

    Raises UserError where something is there already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = path.expanduser().absolute()
    public = path.with_name(f"{path.name}.pub")
    passphrase = os.environ.get(PASSPHRASE, "").encode()
    key = ec.generate_private_key(ec.SECP256R1())
    protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    if there := [one for one in (path, public) if os.path.lexists(one)]:
        raise UserError(f"{there[0]} is there already and a key is never replaced: name another file.")
    try:
        for one, data, mode in ((path, private, 0o600), (public, _public_pem(key.public_key()), 0o644)):
            with os.fdopen(os.open(one, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file.") from error
    return public


def signature_key(manifest: Manifest, key_id: str) -> str:
    """Where a key's signature of a release lies."""
    return f"{FOLDER}{manifest.digest}/{key_id}.json"


def signers(store: ObjectStore, manifest: Manifest) -> list[str]:
    """The ids of the keys that signed a release, as far as nobody looks closer; sorted."""
    return sorted(Path(key).stem for key in store.list(f"{FOLDER}{manifest.digest}/"))


def find_signature(store: ObjectStore, manifest: Manifest, key_id: str = "") -> bytes | None:
    """A key's signature of a release, unverified; with no key the first one's. None where there is none."""
    for one in [key_id] if key_id else signers(store, manifest):
        with suppress(KeyError, TooLarge):
            return store.get(signature_key(manifest, one), MAX_BYTES)
    return None


def require_signature(data: bytes | None, manifest: Manifest, verifier: Verifier, release: str) -> bytes:
    """The signature itself. Raises UserError unless it is the key's and fits; `release`: what it is called, "moa@7"."""
    if data is None:
        raise UserError(
            f"{release} is not signed with {verifier.path}: name the key of who published it, or have it signed with "
            f"moa releases sign {release}."
        )
    try:
        verifier.check(data, manifest)
    except BadSignature as error:
        raise UserError(f"The signature of {release} does not count for {verifier.path}: {error}.") from error
    return data


class _Digests:
    """In the place of model-signing's hashing, which would read the files again: what the manifest says of them."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def add_ignored_paths(self, **_: Any) -> None:
        """What is signed does not depend on a folder."""

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """As `model_signing.hashing.Config.hash`."""
        import model_signing.manifest
        from model_signing._hashing.hashing import Digest

        form = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
        serialization = model_signing.manifest.SerializationType.from_args(form)
        digests = {file.name: file.content.sha256 for file in self._manifest.files}
        digests[MANIFEST] = hashlib.sha256(self._manifest.data).hexdigest()
        items = [serialization.new_item(name, Digest("sha256", bytes.fromhex(one))) for name, one in digests.items()]
        return model_signing.manifest.Manifest(self._manifest.model, items, serialization)


def _bundle(key_id: object, payload: object, signature: object) -> dict[str, Any]:
    return {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key_id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": payload,
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"keyid": "", "sig": signature}],
        },
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"The key {path} cannot be read ({error.strerror}).") from error


def _check_curve(path: Path, public: Any) -> None:
    if getattr(getattr(public, "curve", None), "name", "") not in _CURVES:
        raise UserError(f"{path} is not a key for the curves P-256, P-384 or P-521: moa releases keygen makes one.")


def _key_id(public: Any) -> str:
    return hashlib.sha256(_public_pem(public)).hexdigest()


def _public_pem(public: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
