"""`moa zoo …`: train the demo's tiny models again, and score the ones that are shipped."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.artifacts import console
from infra import model_files
from infra.errors import UserError
from infra.settings import load_settings

if TYPE_CHECKING:
    from infra.zoo.pictures import LabelledPictures

zoo = typer.Typer(no_args_is_help=True, help="The demo's tiny models: train them again, score what is shipped.")

# Seeds of the worlds and how many pictures of each. Nobody trains on the held-out ones.
TRAIN, HELD_OUT = ("broad", 1, 24_000), ("broad", 2, 1_000)
LED, STYLED = 10_000, 6_000  # of the training pictures: what the ControlNet and the style LoRA see
PAIRS, HELD_OUT_PAIRS = ("twice", 3, 7_000), ("twice", 4, 400)


@dataclass(frozen=True)
class Workshop:
    """A folder where the zoo is made: pictures drawn once, and a folder per result, in full precision."""

    root: Path
    share: float = 1.0  # of the pictures

    def folder(self, name: str) -> Path:
        return self.root / name

    @property
    def base(self) -> Path:
        """The base on which others are trained: the one just made here, else the shipped one."""
        own = self.folder("base")
        return own if own.is_dir() else model_files.ZOO / "base"

    def needs(self, name: str) -> Path:
        """A result that another recipe starts from."""
        folder = self.folder(name)
        if not folder.is_dir():
            raise UserError(f"There is no {folder} yet: run moa zoo train {name} first.")
        return folder

    def pictures(self, kind: str, seed: int, count: int) -> Path:
        """The pictures' file, drawn now if it is not there."""
        count = max(64, round(count * self.share))
        path = self.root / "pictures" / f"{kind}-{seed}-{count}.npz"
        if not path.exists():
            from infra.zoo.pictures import LabelledPictures
            from preprocessing.sources import paperfolk_labels

            path.parent.mkdir(parents=True, exist_ok=True)
            with console.status(f"drawing {path.stem}"):
                drawn = paperfolk_labels.labelled(getattr(paperfolk_labels, kind)(seed, count))
                part = path.with_name(f".{path.name}")  # whole or not at all
                LabelledPictures(**drawn).save(part)
                os.replace(part, path)
        return path

    def load(self, world: tuple[str, int, int]) -> "LabelledPictures":
        """The pictures of one world."""
        from infra.zoo.pictures import LabelledPictures

        return LabelledPictures.load(self.pictures(*world))


def _say(line: str) -> None:
    console.print(line, style="dim")


def _tokenizer(shop: Workshop, minutes: float) -> None:
    from infra.zoo.tokenizers import clip_tokenizer

    pictures = shop.load(TRAIN)
    texts = [*pictures.captions, *(look for looks in pictures.looks for look in looks)]
    clip_tokenizer(texts).save_pretrained(shop.folder("tokenizer"))


def _autoencoder(shop: Workshop, minutes: float) -> None:
    from infra.zoo.autoencoder import train_autoencoder

    train_autoencoder(shop.load(TRAIN), shop.folder("autoencoder"), minutes, _say)


def _clip(shop: Workshop, minutes: float) -> None:
    import infra.torchvision_ops  # noqa: F401, I001  # before transformers
    from transformers import CLIPTokenizer

    from infra.zoo.clip import train_clip

    tokenizer = CLIPTokenizer.from_pretrained(shop.needs("tokenizer"))
    train_clip(shop.load(TRAIN), tokenizer, shop.folder("clip"), minutes, _say)


def _base(shop: Workshop, minutes: float) -> None:
    from infra.zoo.base_model import train_base

    vae, clip, run = shop.needs("autoencoder"), shop.needs("clip"), shop.folder("base-run")
    shutil.rmtree(run, ignore_errors=True)  # its latents may be another autoencoder's
    trained = train_base(shop.pictures(*TRAIN), vae, clip, run, minutes, log=_say)
    shutil.rmtree(shop.folder("base"), ignore_errors=True)
    shutil.copytree(trained, shop.folder("base"))


def _captioner(shop: Workshop, minutes: float) -> None:
    from infra.zoo.captioner import train_captioner

    train_captioner(shop.load(TRAIN), shop.folder("captioner"), minutes, _say)


def _segmenter(shop: Workshop, minutes: float) -> None:
    from infra.zoo.segmenter import train_segmenter

    train_segmenter(shop.load(TRAIN), shop.folder("segmenter"), minutes, _say)


def _identity(shop: Workshop, minutes: float) -> None:
    from infra.zoo.identity import train_identity_encoder

    train_identity_encoder(shop.load(PAIRS), shop.folder("identity"), minutes, _say)


def _controlnet(shop: Workshop, minutes: float) -> None:
    from infra.zoo.pose_controlnet import train_pose_controlnet
    from preprocessing.sources.paperfolk_labels import broad
    from preprocessing.sources.paperfolk_pose import draw_poses

    pictures = shop.load(TRAIN).first(LED)
    poses = draw_poses(broad(TRAIN[1], len(pictures)))
    train_pose_controlnet(pictures, poses, shop.base, shop.folder("controlnet"), minutes, _say)


def _style(shop: Workshop, minutes: float) -> None:
    from infra.zoo.style_lora import train_style_lora
    from preprocessing.sources.paperfolk_style import as_print

    pictures = shop.load(TRAIN).first(STYLED)
    prints = as_print(pictures.pixels)
    train_style_lora(prints, pictures.captions, shop.base, shop.folder("style-lora"), minutes, _say)


@dataclass(frozen=True)
class Recipe:
    """How one model is made. `shipped` = the folder of infra/zoo/weights that it fills, "" = none of its own."""

    make: Callable[[Workshop, float], None]
    minutes: float  # on one core (the base: on two)
    shipped: str = ""


# In the order in which they need each other.
RECIPES = {
    "tokenizer": Recipe(_tokenizer, 0),
    "autoencoder": Recipe(_autoencoder, 18),
    "clip": Recipe(_clip, 20, "clip"),
    "base": Recipe(_base, 75, "base"),
    "captioner": Recipe(_captioner, 20, "captioner"),
    "segmenter": Recipe(_segmenter, 11, "segmenter"),
    "identity": Recipe(_identity, 6, "identity"),
    "controlnet": Recipe(_controlnet, 20, "controlnet"),
    "style": Recipe(_style, 14, "style-lora"),
}
RELEASE_STEPS, RELEASE_PHOTOS = 2400, 4000


class Name(StrEnum):
    TOKENIZER = "tokenizer"
    AUTOENCODER = "autoencoder"
    CLIP = "clip"
    BASE = "base"
    CAPTIONER = "captioner"
    SEGMENTER = "segmenter"
    IDENTITY = "identity"
    CONTROLNET = "controlnet"
    STYLE = "style"
    RELEASE = "release-1"
    ALL = "all"


def install(folder: Path, name: str, weights: Path = model_files.ZOO) -> Path:
    """Copy a trained model's folder to `weights`/`name`, its tensors in half precision.

    The configurations still say float32, so that is what the model computes in once it is loaded; the folder where a
    model lay on the way is taken out of them.
    """
    import json

    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    part = weights / f".{name}"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    for path in part.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
        half = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        spoilt = [key for key, value in half.items() if not torch.isfinite(value).all()]
        if spoilt:
            raise UserError(f"{folder} has weights beyond half precision, such as {spoilt[0]}: train it again.")
        save_file({key: value.contiguous() for key, value in half.items()}, path, metadata or {"format": "pt"})
        path.chmod(0o644)
    for path in part.rglob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None):
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    target = weights / name
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target


def train_release(shop: Workshop, steps: int, photos: int, changes: dict[str, str] | None = None) -> Path:
    """The shipped release 1: the demo's own stages up to training, from scratch, on more photos and for longer.

    A killed training goes on where it was. Returns the folder with the adapter's files.
    """
    world = {"paperfolk.photos": str(photos), "paperfolk.seed": "0"}  # not the demo's: that brings new photos
    own = {**world, "train.steps": str(steps), "train.learning_rate": "1e-3"}
    overrides = {**own, **(changes or {})}
    settings = load_settings("demo", shop.folder("release-run"), overrides)
    from flows.session import machinery

    with machinery(settings):
        from flows.caption import caption
        from flows.ingest import ingest
        from flows.run import Run
        from flows.segment import segment
        from flows.shard import shard
        from flows.train import train, trained_adapter
        from flows.world import prepare_world

        prepare_world(settings)
        for stage in (ingest, caption, segment, shard):
            console.print(stage(settings).note)
        plan = train(settings, from_scratch=True).facts
        files = trained_adapter(Run(settings), plan["run_id"])
    folder = shop.folder("release-1")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


Work = Annotated[Path, typer.Option(help="Folder for pictures and results on the way.")]


@zoo.command()
def train(
    name: Annotated[Name, typer.Argument(help="A model, or all but release-1 in their order.")],
    minutes: Annotated[float | None, typer.Option(min=0, help="How long; the recipe's own by default.")] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the pictures, for a trial.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of release-1.")] = RELEASE_STEPS,
    photos: Annotated[int, typer.Option(min=1, help="Photos for release-1.")] = RELEASE_PHOTOS,
    work: Work = Path("runs/zoo"),
    weights: Annotated[Path, typer.Option(help="Where results are installed.")] = model_files.ZOO,
) -> None:
    """Train by the zoo's recipe and install the result, in half precision, where the demo looks for it."""
    shop = Workshop(work.absolute(), share)
    if name is Name.RELEASE:
        shutil.copytree(train_release(shop, steps, photos), weights / "release-1", dirs_exist_ok=True)
        console.print(f"{weights / 'release-1'}", soft_wrap=True)
        return
    weights.mkdir(parents=True, exist_ok=True)
    for one in RECIPES if name is Name.ALL else [name.value]:
        recipe = RECIPES[one]
        spent = recipe.minutes if minutes is None else minutes
        console.print(f"[bold]{one}[/] {spent:g} minutes")
        recipe.make(shop, spent)
        if recipe.shipped:
            console.print(f"{install(shop.folder(recipe.shipped), recipe.shipped, weights)}", soft_wrap=True)


@zoo.command()
def score(
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of the held-out pictures, for a trial.")] = 1.0,
    work: Work = Path("runs/zoo"),
    weights: Annotated[Path, typer.Option(help="The models' folders: base, clip, captioner, …")] = model_files.ZOO,
) -> None:
    """Score the shipped models on held-out Paperfolk; write scores.json, base-samples.png and the README's table."""
    from flows.zoo_scores import score_zoo, write_scores

    scores, samples = score_zoo(Workshop(work.absolute(), share), weights.absolute())
    for path in write_scores(scores, samples, weights):
        console.print(f"{path}", soft_wrap=True)


@zoo.command()
def gallery(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("moa_model/applications/pictures"),
) -> None:
    """Draw the pictures of moa_model/applications/README.md with release 1."""
    from flows.gallery import write_gallery

    for path in write_gallery(out):
        console.print(f"{path}", soft_wrap=True)
