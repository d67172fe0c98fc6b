"""Another person in a real photo."""

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.identity import crop_person
from moa_model.applications import Inverted, invert, regenerate, renoised
from preprocessing.sources.paperfolk_drawing import draw as paper
from preprocessing.sources.paperfolk_world import picture_at

ONE, TWO = picture_at(2, 0), picture_at(2, 22)  # a man alone; two women


@pytest.fixture(scope="module")
def one(studio) -> Inverted:
    return invert(studio.pipe, paper(ONE).image, ONE.caption, steps=15)


def _psnr(first: Image.Image, second: Image.Image) -> float:
    error = np.square(np.asarray(first, float) - np.asarray(second, float)).mean()
    return float(10 * np.log10(255**2 / error))


def test_the_prior_restores_the_photo_from_its_noise(studio, one) -> None:
    photo = paper(ONE).image
    assert _psnr(regenerate(studio.pipe, studio.adapter, one, {}), photo) > 28
    plain = invert(studio.pipe, photo, ONE.caption, steps=15, refinements=0)
    assert _psnr(regenerate(studio.pipe, studio.adapter, plain, {}), photo) > 24
    noise = torch.randn(one.noise.shape, generator=torch.Generator().manual_seed(0))
    other = regenerate(studio.pipe, studio.adapter, Inverted(one.prompt, noise, one.size, one.steps), {})
    assert _psnr(other, photo) < 20  # it is the noise that holds the photo, not the prompt


def test_somebody_else_in_the_photo(studio, one, men) -> None:
    photo = paper(ONE).image
    ((_, mask),) = studio.everybody(photo)
    opened = renoised(one, torch.from_numpy(mask))
    swapped = regenerate(studio.pipe, studio.adapter, opened, {"man": studio.crop(men[2])}, guidance_scale=2.0)
    towards = studio.likeness([swapped], [men[2], photo])[0]
    assert towards[0] > towards[1] + 0.1
    assert studio.background(swapped, photo) < 15  # of 255 grey levels, in a city at night full of lit windows


def test_what_is_not_replaced_stays_the_photos_own(studio, one, men) -> None:
    """Beside the same swap without a mask, as the paper has it; the newcomer is no less like himself."""
    photo = paper(ONE).image
    ((_, mask),) = studio.everybody(photo)
    place, cast = torch.from_numpy(mask), {"man": studio.crop(men[2])}
    opened = renoised(one, place)
    free, kept = (regenerate(studio.pipe, studio.adapter, opened, cast, 2.0, replaced) for replaced in (None, place))
    with torch.no_grad():  # the photo as the autoencoder has it, which loses windows
        decoded = studio.pipe.vae.decode(one.latents[-1] / studio.pipe.vae.config.scaling_factor).sample
    (restored,) = studio.pipe.image_processor.postprocess(decoded, "pil")
    assert studio.background(kept, restored) < 0.9 * studio.background(free, restored)
    assert studio.likeness([kept], [men[2]])[0, 0] > studio.likeness([free], [men[2]])[0, 0] - 0.1


def test_of_two_people_one_stays(studio, men, women) -> None:
    photo = paper(TWO).image
    (_, left), (right_crop, _) = studio.everybody(photo)
    words = [person.identity.word for person in TWO.people]
    assert words == ["woman", "woman"]
    opened = renoised(invert(studio.pipe, photo, TWO.caption, steps=15), torch.from_numpy(left))
    cast = {"woman": [studio.crop(women[1]), right_crop]}
    swapped = regenerate(studio.pipe, studio.adapter, opened, cast, guidance_scale=2.0)
    before, after = _from_the_left(studio, photo), _from_the_left(studio, swapped)
    assert len(before) == len(after) == 2
    (newcomer,) = _from_the_left(studio, women[1])
    assert after[1] @ before[1] > 0.8  # who stays is still herself …
    assert after[0] @ before[0] < 0.6  # … the other one has gone …
    assert after[0] @ newcomer > before[0] @ newcomer + 0.1  # … and the new one has come


def _from_the_left(studio, picture: Image.Image) -> np.ndarray:
    found = sorted(studio.people([picture])[0], key=lambda person: person.box[0])
    return studio.identity.embed([crop_person(picture, person, studio.identity.crop) for person in found])


def test_noise_is_renewed_where_somebody_goes_and_nowhere_else(one) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:32] = True
    opened = renoised(one, mask)
    changed = (opened.noise != one.noise).any(dim=1)[0]
    assert changed[:8].all() and not changed[8:].any()
    assert torch.equal(renoised(one, mask, share=0).noise, one.noise)
    assert torch.equal(renoised(one, mask, seed=1).noise, renoised(one, mask, seed=1).noise)
    assert not torch.equal(renoised(one, mask, seed=1).noise, opened.noise)
