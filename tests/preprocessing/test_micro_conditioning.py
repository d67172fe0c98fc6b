"""What SDXL is told of a photo and its cut."""

import infra.torchvision_ops  # noqa: F401

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing.micro_conditioning import time_ids
from preprocessing.photos import square
from tests.tiny_pipelines import tiny_case


def test_a_whole_square_photo_is_what_a_pipeline_draws_by_default() -> None:
    """FFHQ's photos at SDXL's size: nothing is enlarged, nothing cut."""
    pipe = tiny_case("sdxl").pipe
    drawn = pipe._get_add_time_ids((1024, 1024), (0, 0), (1024, 1024), torch.float32, 16)[0]
    assert time_ids({"size": [1024, 1024], "crop": [0, 0, 1024, 1024]}, 1024) == tuple(drawn.tolist())


def test_sizes_are_the_photos_and_cuts_are_measured_after_resizing() -> None:
    """A photo of 3000 × 2000 cut to its right half: resized to 1536 × 1024, from which 512 columns are cut off."""
    about = {"size": [3000, 2000], "crop": [1000, 0, 3000, 2000]}
    assert time_ids(about, 1024) == (2000, 3000, 0, 512, 1024, 1024)
    tall = {"size": [512, 768], "crop": [0, 100, 512, 612]}
    assert time_ids(tall, 1024) == (768, 512, 200, 0, 1024, 1024)  # enlarged, and SDXL is told so


@given(st.integers(8, 60), st.integers(8, 60), st.sampled_from([8, 16, 64]))
def test_the_cut_lies_within_the_resized_photo(width: int, height: int, pixels: int) -> None:
    _, crop = square(Image.new("RGB", (width, height)), (), pixels)
    about = {"size": [width, height], "crop": [crop.left, crop.top, crop.left + crop.side, crop.top + crop.side]}
    told_height, told_width, top, left, *target = time_ids(about, pixels)
    assert (told_height, told_width, target) == (height, width, [pixels, pixels])
    scale = pixels / min(width, height)
    assert 0 <= top <= round(height * scale) - pixels + 1 and 0 <= left <= round(width * scale) - pixels + 1
    assert top == 0 or left == 0  # the square is as large as it can be
