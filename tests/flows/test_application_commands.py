"""Every application as a command, on the shipped release 1."""

import sys
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows import cli
from flows.application_commands import applications
from flows.gallery import portrait
from infra.model_files import ZOO
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_pose import draw_pose
from preprocessing.sources.paperfolk_world import picture_at

MAN = "a photo of a man on the beach"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("photos")
    pictures = {
        "ben": portrait(2, "man"),
        "carl": portrait(3, "man"),
        "ann": portrait(50, "woman"),
        "couple": draw(picture_at(2, 22)).image,
        "pose": draw_pose(picture_at(2, 3)),
    }
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in pictures}


def run(tmp_path: Path, *arguments: str, out: str = "x.png") -> Image.Image:
    """The picture that a command writes with few steps."""
    command = [*arguments, "--release", str(ZOO / "release-1"), "--workspace", str(tmp_path / "work")]
    options = ["--set", "evaluate.inference_steps=3", "--out", str(tmp_path / out)]
    result = CliRunner().invoke(applications, [*command, *options], catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / out)
    assert not (tmp_path / "work").exists()  # a picture leaves nothing else behind
    return Image.open(tmp_path / out)


def test_swap(tmp_path: Path, photos: dict[str, str]) -> None:
    both = run(tmp_path, "swap", "--prompt", MAN, "--subject", photos["ben"], "--subject", photos["carl"])
    one = run(tmp_path, "swap", "--prompt", MAN, "--subject", photos["ben"], out="one.png")
    assert both.width > one.width and both.height == one.height  # a column per person


def test_swap_in_a_real_photo(tmp_path: Path, photos: dict[str, str]) -> None:
    prompt = "a photo of a woman and a woman in a library"
    real = ["swap", "--prompt", prompt, "--photo", photos["couple"], "--subject", photos["ann"]]
    first, second = (np.asarray(run(tmp_path, *real, "--replace", place, out=f"{place}.png"), float) for place in "12")
    width = first.shape[1] // 4
    assert np.array_equal(first[:, : 3 * width], second[:, : 3 * width])  # photo, restored, newcomer: the same
    left, right = (np.abs(first - second)[:, 3 * width :].mean((0, 2))[half] for half in (slice(0, 96), slice(96, 192)))
    assert left.mean() > 2 and right.mean() > 2  # other people went


def test_browse_and_pick(tmp_path: Path, photos: dict[str, str]) -> None:
    scenes = run(tmp_path, "browse", "--prompt", MAN, "--count", "3", "--seed", "5")
    chosen = ["--pick", "6", "--subject", photos["ben"]]
    picked = run(tmp_path, "browse", "--prompt", MAN, "--count", "3", "--seed", "5", *chosen, out="y.png")
    assert picked.width == scenes.width and picked.height > scenes.height
    assert np.array_equal(np.asarray(picked)[: scenes.height - 8], np.asarray(scenes)[: scenes.height - 8])


def test_morph_and_timelapse_as_films(tmp_path: Path, photos: dict[str, str]) -> None:
    two = ["--subject", photos["ben"], "--subject", photos["carl"]]
    with run(tmp_path, "morph", "--prompt", MAN, *two, "--frames", "3", out="m.gif") as film:
        assert film.n_frames == 4  # there and back: 1 2 3 2
    one = ["--subject", photos["ben"], "--until", "woman", "--frames", "2"]
    strip = run(tmp_path, "timelapse", "--prompt", MAN, *one)
    assert strip.width > 2.9 * strip.height * 0.8  # the photo and two frames


def test_story(tmp_path: Path, photos: dict[str, str]) -> None:
    cast = ["--cast", f"Ann=woman:{photos['ann']}", "--cast", "Fred=man"]
    page = run(tmp_path, "story", *cast, "--panel", "a photo of Ann and Fred", "--panel", "a photo of Fred in the snow")
    assert page.height > page.width  # two people above two panels, with two lines of words


def test_routers(tmp_path: Path, photos: dict[str, str]) -> None:
    run(tmp_path, "routers", "--prompt", MAN, "--subject", photos["ben"])


def test_generate_with_a_pose_and_a_style(tmp_path: Path, photos: dict[str, str]) -> None:
    plain, posed, styled = (
        np.asarray(run(tmp_path, "generate", "--prompt", MAN, "--subject", photos["ben"], *more, out=f"{name}.png"))
        for name, more in {
            "plain": [],
            "posed": ["--control", photos["pose"]],
            "styled": ["--lora", "zoo:style-lora"],
        }.items()
    )
    assert not np.array_equal(plain, posed) and not np.array_equal(plain, styled)
    spread = [float((picture.max(-1).astype(int) - picture.min(-1)).mean()) for picture in (plain, styled)]
    assert spread[1] < spread[0]  # a print in one ink is less colourful


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["swap", "--prompt", MAN], "Give a --subject"),
        (["swap", "--prompt", MAN, "--subject", "a.png", "--subject", "b.png", "--photo", "c.png"], "Give a --subject"),
        (["swap", "--prompt", MAN, "--subject", "a.png"], "a.png"),
        (["swap", "--prompt", "a tree", "--subject", "a.png"], '"man"'),
        (["browse", "--prompt", MAN, "--pick", "3"], "--pick and --subject go together"),
        (["morph", "--prompt", MAN, "--subject", "a.png"], "--subject twice"),
        (["morph", "--prompt", MAN, "--frames", "1"], "--frames"),
        (["timelapse", "--prompt", MAN, "--subject", "a.png"], "--until"),
        (["story", "--cast", "Ann", "--panel", "Ann"], "--cast Ann=woman:ann.png"),
        (["story", "--cast", "Ann=woman:a.png", "--panel", "a tree"], "Nobody of the story"),
        (["generate", "--prompt", MAN, "--control", "pose.png"], "pose.png"),
        (["generate", "--prompt", MAN, "--lora", "somebody/style"], "owner/name@COMMIT"),
        (["generate", "--prompt", MAN, "--lora", "zoo:nothing"], "style-lora"),
    ],
)
def test_mistakes(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moa", *arguments, "--out", "x.png"])
    assert cli._run() == 2
    printed = capsys.readouterr().err.splitlines()
    assert says in printed[-1] and printed[-1].startswith("moa: ")


def test_who_is_not_in_the_photo_cannot_be_replaced(
    tmp_path: Path, photos: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ["swap", "--prompt", MAN, "--photo", photos["couple"], "--subject", photos["ben"], "--out", "x.png"]
    blind = ["--set", "segment.score_threshold=1.0", "--set", "segment.face_fallback=false"]  # sees nobody
    monkeypatch.chdir(tmp_path)
    for more, says in ((blind, "Nobody is seen"), (["--replace", "3"], "2 people"), ([], "1 words")):
        monkeypatch.setattr(sys, "argv", ["moa", *real, *more, "--release", str(ZOO / "release-1")])
        assert cli._run() == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
