"""From a model's name in the settings to the folder or hub id that `from_pretrained` takes, and to its fingerprint."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from infra.errors import UserError
from infra.model_mirror import fetch_mirror, is_mirror, mirror_folder
from infra.settings import ModelReference

ZOO = Path(__file__).parent / "zoo" / "weights"

# SHA-256 of published files that have to be placed by hand, or that a machine without a network lacks.
PUBLISHED = {
    "20180402-114759-vggface2.pt": "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
    "alexnet-owt-7be5be79.pth": "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "openai/clip-vit-large-patch14": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
}
# Weights that are one converted file: its name, whose they are, and which published pickle it is converted from.
_CONVERTED = {
    "facenet": ("vggface2.safetensors", "FaceNet", "facenet-pytorch's", "20180402-114759-vggface2.pt"),
    "lpips": ("alexnet.safetensors", "LPIPS' AlexNet", "torchvision's", "alexnet-owt-7be5be79.pth"),
}

# What `save_pretrained` always writes: its absence means a half-copied or a wrong folder.
_CONFIGURATION_FILES = {"transformers": "config.json", "clip": "config.json", "diffusers": "model_index.json"}


def resolve(reference: ModelReference, kind: str) -> tuple[str, dict[str, str]]:
    """What to hand to `from_pretrained`: a folder's path or a hub id, and keyword arguments such as its revision.

    `kind` ("captioner", …) is what an error calls the model. Raises UserError when a folder is missing or incomplete,
    or when a hub id has no pinned revision. A model in an object store is fetched, once; nothing else is downloaded.
    """
    if is_mirror(reference.location):
        fetched = reference.model_copy(update={"location": str(fetch_mirror(reference.location))})
        _check_pinned(fetched, reference.location, kind)
        return resolve(fetched, kind)
    if reference.backend in _CONVERTED:
        place = Path(reference.location).expanduser().absolute()
        return str(converted_file(place, reference.backend, kind)), {}
    folder = local_folder(reference)
    if folder is None:
        return reference.location, {"revision": _pinned_revision(reference, kind)}
    if not folder.is_dir():
        shipped = sorted(path.name for path in ZOO.iterdir() if path.is_dir()) if ZOO.is_dir() else []
        hint = (
            f"the zoo has {', '.join(shipped) or 'no weights: install the package with its data'}"
            if reference.location.startswith("zoo:")
            else f"put the files there or change models.{kind}.location"
        )
        raise UserError(f"The {kind} {reference.location!r} is not at {folder}: {hint}.")
    expected = _CONFIGURATION_FILES.get(reference.backend)
    if expected and not (folder / expected).is_file():
        raise UserError(f"The {kind}'s folder {folder} holds no {expected}: copy the whole model folder there.")
    return str(folder), {}


def converted_file(weights: Path, backend: str, kind: str) -> Path:
    """The converted weights of `backend` where `weights` is their file or its folder.

    UserError, with the published file's name, digest and the way to convert it, otherwise.
    """
    name, owner, source, published = _CONVERTED[backend]
    file = weights / name if weights.is_dir() or weights.suffix == "" else weights
    advice = (
        f"convert {source} {published} (SHA-256 {PUBLISHED[published]}) once with the command in evaluation/README.md "
        f"and set models.{kind}.location to the {name} that it writes or to its folder."
    )
    if file.suffix != ".safetensors":
        raise UserError(f"{owner}'s weights at {file} are not .safetensors, and pickles are never loaded: {advice}")
    if not file.is_file():
        raise UserError(f"{owner}'s weights are not at {file}: {advice}")
    return file


@contextmanager
def weights_needed(reference: ModelReference, kind: str) -> Iterator[None]:
    """Where `from_pretrained` finds no file inside, UserError: which file, its digest where known, and its place."""
    try:
        yield
    except OSError as error:
        digest = PUBLISHED.get(reference.location)
        file = f"model.safetensors{f' (SHA-256 {digest})' if digest else ''}"
        where, revision = reference.location, reference.revision
        mend = f"hf download {where} --revision {revision}" if is_hub_id(reference) else f"put it into {where}"
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"The {kind}'s {file} of {where} cannot be read ({cause}): {mend}.") from error


def local_folder(reference: ModelReference) -> Path | None:
    """The folder that the reference names, whether or not it exists; None when it is a hub id."""
    location = reference.location
    if is_mirror(location):
        return mirror_folder(location)
    if location.startswith("zoo:"):
        return ZOO / location.removeprefix("zoo:")
    looks_like_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", location) is not None
    if looks_like_hub_id and (reference.revision or not Path(location).is_dir()):
        return None
    return Path(location).expanduser().absolute()


def folder_here(reference: ModelReference) -> Path | None:
    """The folder in which some of the model's files are on this machine: its own, or the hub's cache; None for none.

    Nothing is asked of a network: a mirror counts once it has been fetched, a hub id once it is in the cache.
    """
    folder = local_folder(reference)
    if folder is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        name = f"models--{reference.location.replace('/', '--')}"
        folder = Path(HF_HUB_CACHE) / name / "snapshots" / (reference.revision or "none")
    return folder if folder.is_dir() else None


def is_hub_id(reference: ModelReference) -> bool:
    """Whether the reference names a model of the hub."""
    return local_folder(reference) is None


def fingerprint(reference: ModelReference, parts: Sequence[str] = ()) -> str:
    """A name for exactly these weights: "owner/name@revision" on the hub, else a SHA-256 of the files' names and bytes.

    parts: of a local pipeline's folder, only these subfolders ("vae"): what is made with one part does not depend on
    the others.

    A file that has the size and modification time it had before is not read again within a process.
    """
    location, arguments = resolve(reference, "model")
    if arguments:
        return f"{location}@{arguments['revision']}"
    return _files_digest(Path(location), parts)


def weights_digest(reference: ModelReference) -> str:
    """SHA-256 of the model's weights: of its one .safetensors file, or over all files' names and bytes where there are
    more; "" while a hub's model is not on this machine."""
    location, arguments = resolve(reference, "model")
    place = folder_here(reference) if arguments else Path(location)
    if place is None:
        return ""
    files = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    if len(files) != 1:
        return _files_digest(place)
    status = files[0].stat()
    return _file_sha256(files[0], status.st_size, status.st_mtime_ns)


def _files_digest(place: Path, parts: Sequence[str] = ()) -> str:
    folder, paths = (place.parent, [place]) if place.is_file() else (place, sorted(place.rglob("*")))
    digest = hashlib.sha256()
    for path in paths:
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue  # a download's or a desktop's notes are not the model
        if parts and name.parts[0] not in parts:
            continue
        status = path.stat()
        digest.update(f"{name.as_posix()}\0{_file_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _file_sha256(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_pinned(fetched: ModelReference, location: str, kind: str) -> None:
    """A mirror may be pinned to the digest of its files, as `fingerprint` gives it."""
    wanted = fetched.revision
    if wanted and (found := _files_digest(Path(fetched.location))) != wanted:
        raise UserError(
            f"The {kind} at {location} has the files of {found}, and models.{kind}.revision says {wanted}: mend "
            f"either, or remove {fetched.location} to fetch it again."
        )


def _pinned_revision(reference: ModelReference, kind: str) -> str:
    revision = reference.revision or ""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"The {kind} {reference.location!r} is neither a folder here nor a hub id with a pinned commit: "
            f"set models.{kind}.revision to 40 hex digits."
        )
    return revision
