"""`moa generate` and the paper's applications as commands. Heavy packages are imported inside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.options import Changes, Preset, Workspace, read_settings
from infra.errors import UserError

if TYPE_CHECKING:
    from flows.applications import Film

applications = typer.Typer()

Prompt = Annotated[str, typer.Option(help='As "a photo of a man holding roses on the beach".')]
Out = Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")]
FilmOut = Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp; .gif moves.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same scene.")]
Frames = Annotated[int, typer.Option(min=2, help="How many pictures.")]
Photos = Annotated[list[Path] | None, typer.Option("--subject", help="A photo of somebody; again for another person.")]
Photo = Annotated[Path, typer.Option("--subject", help="A photo of somebody.")]
ReleaseName = Annotated[str, typer.Option("--release", help="An alias, a number, an id, or a pulled folder.")]


@applications.command()
def generate(
    prompt: Prompt,
    out: Out,
    subject: Photos = None,
    seed: Seed = 0,
    control: Annotated[Path | None, typer.Option(help="A picture of a pose that a ControlNet is to follow.")] = None,
    controlnet: Annotated[
        str, typer.Option(help='Its model: "zoo:controlnet", a folder, or owner/name@COMMIT.')
    ] = "zoo:controlnet",
    lora: Annotated[
        str | None, typer.Option(help='A style: "zoo:style-lora", a folder or file, or owner/name@COMMIT.')
    ] = None,
    lora_strength: Annotated[float, typer.Option(min=0, help="How much of the style.")] = 1.0,
    release: ReleaseName = "production",
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Draw a picture of the people in the photos."""
    from flows.generate import generate

    settings = read_settings(preset, workspace, changes)
    path = generate(settings, subject or [], prompt, seed, out, release, control, controlnet, lora, lora_strength)
    typer.echo(f"{path}")


@applications.command()
def swap(
    prompt: Prompt,
    out: Out,
    subject: Photos = None,
    seed: Seed = 0,
    photo: Annotated[
        Path | None, typer.Option(help="A real photo in which the subject takes somebody's place.")
    ] = None,
    replace: Annotated[int, typer.Option(min=1, help="Whose place in --photo, counted from the left.")] = 1,
    release: ReleaseName = "production",
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """One scene with one person after the other; with --photo, a person of a real photo replaced."""
    from flows.generate import check_writable, write_picture

    check_writable(out)
    subjects = subject or []
    if not subjects or (photo and len(subjects) > 1):
        raise UserError("Give a --subject: one for a real --photo, any number for a drawn scene.")
    from flows import applications

    whose = applications.Release(read_settings(preset, workspace, changes), release)
    if photo is None:
        picture = applications.swap(whose, subjects, prompt, seed)
    else:
        picture = applications.swap_in_photo(whose, photo, subjects[0], prompt, replace)
    typer.echo(f"{write_picture(picture, out)}")


@applications.command()
def browse(
    prompt: Prompt,
    out: Out,
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 12,
    seed: Annotated[int, typer.Option(help="The first scene's seed; the others follow it.")] = 0,
    pick: Annotated[int | None, typer.Option(help="The seed of the scene into which --subject is put.")] = None,
    subject: Photos = None,
    release: ReleaseName = "production",
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Scenes by the base model alone; --pick one and put people into it (as moa generate --seed does)."""
    from flows.generate import check_writable, write_picture

    check_writable(out)
    from flows import applications

    whose = applications.Release(read_settings(preset, workspace, changes), release)
    picture = applications.browse(whose, prompt, range(seed, seed + count), pick, subject or [])
    typer.echo(f"{write_picture(picture, out)}")


@applications.command()
def morph(
    prompt: Prompt,
    out: FilmOut,
    subject: Photos = None,
    frames: Frames = 6,
    seed: Seed = 0,
    release: ReleaseName = "production",
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """From one person to another: two --subject, one scene."""
    _check_film(out)
    if subject is None or len(subject) != 2:
        raise UserError("A morph goes from one person to another: give --subject twice.")
    from flows import applications

    whose = applications.Release(read_settings(preset, workspace, changes), release)
    _write_film(applications.morph(whose, (subject[0], subject[1]), prompt, frames, seed), out)


@applications.command()
def timelapse(
    prompt: Prompt,
    out: FilmOut,
    subject: Photo,
    until: Annotated[str, typer.Option(help="What the prompt's person word turns into, as woman or person.")],
    frames: Frames = 6,
    seed: Seed = 0,
    release: ReleaseName = "production",
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """One person while a word turns into another, as kid into person."""
    _check_film(out)
    from flows import applications

    whose = applications.Release(read_settings(preset, workspace, changes), release)
    _write_film(applications.time_lapse(whose, subject, prompt, until, frames, seed), out)


@applications.command()
def story(
    out: Out,
    cast: Annotated[list[str], typer.Option(metavar="NAME=WORD:PHOTO", help="Ann=woman:ann.png; no photo: invented.")],
    panel: Annotated[list[str], typer.Option(help='A sentence with names, as "a photo of Ann and Ben in the snow".')],
    seed: Annotated[int, typer.Option(help="The first panel's seed; the others follow it.")] = 0,
    release: ReleaseName = "production",
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Characters with names, alone and together, a panel per sentence."""
    from flows.generate import check_writable, write_picture

    check_writable(out)
    from flows import applications

    whose = applications.Release(read_settings(preset, workspace, changes), release)
    typer.echo(f"{write_picture(applications.story(whose, cast, panel, seed), out)}")


@applications.command()
def routers(
    prompt: Prompt,
    out: Out,
    subject: Photo,
    seed: Seed = 0,
    release: ReleaseName = "production",
    preset: Preset = "demo",
    workspace: Workspace = None,
    changes: Changes = None,
) -> None:
    """Which pixels are the personalization expert's, by block and timestep."""
    from flows.generate import check_writable, write_picture

    check_writable(out)
    from flows import applications

    whose = applications.Release(read_settings(preset, workspace, changes), release)
    typer.echo(f"{write_picture(applications.routers(whose, subject, prompt, seed), out)}")


def _check_film(out: Path) -> None:
    from flows.generate import check_writable

    check_writable(out, (".png", ".jpg", ".jpeg", ".webp", ".gif"))


def _write_film(film: "Film", out: Path) -> None:
    """All in one row; a .gif shows the drawn frames one after the other."""
    from flows.generate import write_picture
    from flows.sheets import animate
    from infra.errors import written_by_us

    if out.suffix.lower() == ".gif":
        with written_by_us(out, "give --out another name"):
            animate([picture for _, picture in film.frames if picture], out)
    else:
        write_picture(film.strip(), out)
    typer.echo(f"{out}")
