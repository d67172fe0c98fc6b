"""A journey in miniature: a few Paperfolk photos in the official formats, tiny models, and settings that name them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageOps
from skimage.data import astronaut

from infra.evaluation_settings import RegressionSettings
from infra.settings import RaySettings, Settings, load_settings
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from tests.tiny_models import tiny_blip2, tiny_clip, tiny_mask2former, tiny_pipeline

PIXELS = 32


def write_world(root: Path, photos: int = 20) -> Path:
    """Models, photos and evaluation people under `root`."""
    write_models(root / "models")
    write_photos(root / "ffhq", photos)
    write_people(root / "celeba")
    return root


def write_models(root: Path) -> Path:
    """Random models of the production classes under `root`: base, clip, captioner, segmenter, identity."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    tiny_pipeline(folder=root / "base")
    tiny_clip(folder=root / "clip")
    tiny_blip2(root / "captioner")
    tiny_mask2former(root / "segmenter")
    torch.manual_seed(0)
    identity = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
    identity.eval().save_pretrained(root / "identity", safe_serialization=True)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(root / "identity")
    return root


def write_photos(root: Path, count: int, first: int = 0, pixels: int = PIXELS) -> Path:
    """`count` photos in FFHQ's layout, the last one twice, and a text file that is no picture."""
    folder = root / "images1024x1024" / "00000"
    folder.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text()) if (path := root / "ffhq-dataset-v2.json").exists() else {}
    for index in range(first, first + count + 2):
        file = folder / f"{index:05d}.png"
        drawing = draw(picture_at(0, min(index, first + count - 1)), pixels)
        if index == first + count + 1:
            file.write_bytes(b"this is no picture")
        else:
            drawing.image.save(file)
        entries[str(index)] = {
            "category": "training",
            "metadata": {"author": "Paperfolk", "license": "CC0"},
            "image": {
                "file_url": "",
                "file_path": f"images1024x1024/00000/{file.name}",
                "file_size": file.stat().st_size,
                "file_md5": hashlib.md5(file.read_bytes()).hexdigest(),
                "pixel_size": [pixels, pixels],
                "face_landmarks": drawing.landmarks[0],
            },
        }
    path.write_text(json.dumps(entries))
    return root


def add_photo(root: Path, index: int, image: Image.Image) -> str:
    """One more photo in FFHQ's layout, under an index of its own; its origin."""
    origin, lists = f"images1024x1024/00000/{index:05d}.png", root / "ffhq-dataset-v2.json"
    image.save(root / origin, compress_level=1)
    data, entries = (root / origin).read_bytes(), json.loads(lists.read_text())
    about = {"file_path": origin, "file_size": len(data), "file_md5": hashlib.md5(data).hexdigest()}
    image_about = {**entries["0"]["image"], **about, "pixel_size": list(image.size)}
    entries[str(index)] = {**entries["0"], "image": image_about}
    lists.write_text(json.dumps(entries))
    return origin


def write_people(root: Path, people: int = 4, photos_each: int = 2) -> Path:
    """Evaluation people in CelebA's layout."""
    (root / "img_celeba").mkdir(parents=True, exist_ok=True)
    (root / "Anno").mkdir(exist_ok=True)
    identities, attributes = [], []
    for number in range(people * photos_each):
        name = f"{number + 1:06d}.png"
        picture = picture_at(99, number)
        draw(picture, PIXELS).image.save(root / "img_celeba" / name)
        identities.append(f"{name} {number // photos_each + 1}")
        attributes.append(f"{name} {1 if number // photos_each % 2 else -1}")
    (root / "Anno" / "identity_CelebA.txt").write_text("\n".join(identities) + "\n")
    (root / "Anno" / "list_attr_celeba.txt").write_text("\n".join([str(len(attributes)), "Male", *attributes]) + "\n")
    return root


def write_aligned_people(root: Path, photos_each: int = 2) -> Path:
    """CelebA's aligned pictures, 178 × 218 pixels, of all whom the protocol names, with the lists that belong to them.

    They have one face, an astronaut's, some of them mirrored: MTCNN knows no faces of paper.
    """
    for folder in ("Img/img_align_celeba", "Anno", "Eval"):
        (root / folder).mkdir(parents=True)
    identities = [one.identity for one in load_settings("sd15").evaluate.people]
    names = [f"{number:06d}.jpg" for number in range(1, len(identities) * photos_each + 1)]
    face = Image.fromarray(astronaut()).crop((140, 20, 303, 220))
    for number, name in enumerate(names):
        picture = face.resize((178, 218)) if number % 2 else ImageOps.mirror(face.resize((178, 218)))
        picture.save(root / "Img/img_align_celeba" / name, quality=95)
    points = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    lists = {
        "Anno/identity_CelebA.txt": [
            f"{name} {identities[number // photos_each]}" for number, name in enumerate(names)
        ],
        "Anno/list_attr_celeba.txt": [str(len(names)), "Male"]
        + [f"{name} 1" for name in names],  # one word: swapping two subjects is measured within a word
        "Anno/list_landmarks_align_celeba.txt": [str(len(names)), points]
        + [f"{name} 69 109 106 113 77 142 73 152 108 154" for name in names],
        "Eval/list_eval_partition.txt": [f"{name} 2" for name in names],
    }
    for place, lines in lists.items():
        (root / place).write_text("\n".join(lines) + "\n")
    return root


def tiny_changes(world: Path) -> dict[str, str]:
    """What of the demo's preset is changed: the world's models and photos, and a few steps of everything."""
    models = {f"models.{name}.location": str(world / "models" / name) for name in MODELS}
    models["models.perceptual.location"] = models["models.clip.location"]
    return {
        **models,
        "ingest.source": f"ffhq:{world / 'ffhq'}",
        "ingest.pixels": str(PIXELS),
        "ingest.min_side": "16",
        "ingest.photos_per_shard": "6",
        # Starting an actor takes longer than its work: two where order matters, one elsewhere.
        "caption.workers": "1",
        "segment.workers": "1",
        "shard.workers": "1",
        "evaluate.workers": "1",
        "caption.max_new_tokens": "6",
        "segment.score_threshold": "0.3",
        "segment.overlap_threshold": "0.1",
        "shard.reference_pixels": str(PIXELS),
        "train.steps": "6",
        "train.batch_size": "4",
        "train.checkpoint_every": "2",
        "train.pictures_every": "0",
        "evaluate.source": f"celeba:{world / 'celeba'}",
        "evaluate.subjects": "2",
        "evaluate.seeds": "[1, 2]",
        "evaluate.inference_steps": "3",
        "evaluate.prompts": '[{template = "a photo of a {word} holding roses", scene = "", object = "roses",'
        ' group = "held"}, {template = "a {word} on the beach", scene = "on the beach", object = "", group = "there"}]',
        # Random models pass the gate, whatever they draw.
        "publish.min_identity_gain": "-1.0",
        "publish.min_scene_ratio": "0.0",
        "publish.min_object_ratio": "0.0",
        "publish.max_background_change": "1000.0",
        "publish.min_people_found": "0.0",
        "publish.min_faces_found": "0.0",
        **{f"publish.max_regression.{name}": "1000.0" for name in RegressionSettings.model_fields},
    }


def tiny_settings(world: Path, workspace: Path, changes: Mapping[str, str] | None = None) -> Settings:
    """The demo's settings with `tiny_changes` and these."""
    return load_settings("demo", workspace, {**tiny_changes(world), **(changes or {})})


def tiny_ray(address: str, num_cpus: int) -> RaySettings:
    """The demo's Ray with little memory, of this machine or at an address."""
    changes = {"address": address, "num_cpus": num_cpus, "object_store_mb": 80}
    return load_settings("demo").ray.model_copy(update=changes)


MODELS = ("base", "clip", "captioner", "segmenter", "identity")
