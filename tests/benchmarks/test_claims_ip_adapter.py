"""The IP-Adapter arm is diffusers' own."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flows.training_samples import batch_of
from moa_model import draw
from tests.benchmarks.claims.ip_adapter import IPAdapterArm, IPAdapterPainter, fresh_weights, read_weights
from tests.benchmarks.claims_world import tiny_world
from tests.tiny_models import IMAGE_DIM, tiny_pipeline


def test_the_images_keys_and_values_start_as_the_texts():
    unet = tiny_pipeline().unet
    weights = fresh_weights(unet, IMAGE_DIM)
    assert len(weights["ip_adapter"]) == 2 * 16
    host = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2")
    assert torch.equal(weights["ip_adapter"]["1.to_k_ip.weight"], host.to_k.weight)


def test_only_projection_keys_and_values_are_trained_and_a_pipeline_reads_them(tmp_path: Path):
    world = tiny_world(tmp_path)
    base = world.base()
    module = IPAdapterArm(base.unet, base.scheduler, world.image_dim)
    numbers = draw(0, range(4), world.latent_shape, 999, 0.5)
    batch = batch_of(world.samples[:4], numbers, base.null_text, base.scaling, base.shift)
    optimizer = torch.optim.SGD(module.groups(0.1))
    module(batch, torch.zeros(4), None).total.backward()
    optimizer.step()
    moved = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert moved and all(name.startswith("trained.") or "_ip" in name or "encoder_hid_proj" in name for name in moved)

    module.keep(tmp_path / "kept")
    pipe = tiny_pipeline()
    pipe.load_ip_adapter(
        read_weights(tmp_path / "kept"),
        subfolder=None,
        weight_name=None,
        image_encoder_folder=None,
        low_cpu_mem_usage=False,
    )
    loaded, own = pipe.unet.state_dict(), module.unet.state_dict()
    names = [name for name in loaded if "_ip." in name or "encoder_hid_proj" in name]
    assert len(names) == 2 * 16 + 4
    for name in names:
        assert torch.equal(loaded[name], own[name]), name


def test_a_dropped_sample_sees_neither_text_nor_picture(tmp_path: Path):
    world = tiny_world(tmp_path)
    base = world.base()
    module = IPAdapterArm(base.unet, base.scheduler, world.image_dim)
    losses = []
    for _ in range(2):
        numbers = draw(0, range(2), world.latent_shape, 999, 1.0)
        batch = batch_of(world.samples[:2], numbers, base.null_text, base.scaling, base.shift)
        if losses:
            batch.image_embeds.add_(5.0)
            batch.text.add_(5.0)
        losses.append(module(batch, torch.zeros(2), None).total)
    assert torch.equal(*losses)


def test_every_picture_of_a_batch_shows_its_own_subject(tmp_path: Path):
    world = tiny_world(tmp_path)
    base = world.base()
    module = IPAdapterArm(base.unet, base.scheduler, world.image_dim)
    module.keep(tmp_path / "kept")
    painter = IPAdapterPainter(world.settings, tmp_path / "kept", 1.0)
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    prompt = "a photo of a man"
    together = painter.draw([prompt] * 2, [{"man": red}, {"man": blue}], [1, 1])
    alone = painter.draw([prompt], [{"man": blue}], [1])
    pictures = [np.asarray(drawing.picture, int) for drawing in (*together, *alone)]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] == pictures[2]).all()
