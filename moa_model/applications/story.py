"""Storytelling (app. E.3): characters with names, alone and together, over several prompts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.applications.swap import draw, scene_of
from moa_model.binding import Portrait, SubjectLike


@dataclass(frozen=True)
class Character:
    """Somebody of a story: the word that the base model knows them by, and how they look."""

    word: str
    portrait: Portrait


def told(sentence: str, cast: Mapping[str, Character]) -> tuple[str, dict[str, list[SubjectLike | None]]]:
    """The prompt of a sentence with names, and its subjects: "Ann in the snow" is "a woman in the snow" with Ann.

    >>> told("a photo of Ann and a woman", {"Ann": Character("woman", "her picture")})
    ('a photo of a woman and a woman', {'woman': ['her picture']})

    Raises UserError for a sentence in which nobody of the cast appears.
    """
    if not cast:
        raise UserError("A story needs characters: give their names.")
    names = "|".join(re.escape(name) for name in sorted(cast, key=len, reverse=True))
    by_name = {name.lower(): character for name, character in cast.items()}
    parts = re.split(rf"(?<!\w)({names})(?!\w)", sentence, flags=re.IGNORECASE)  # text, name, text, name, …, text
    if len(parts) == 1:
        raise UserError(f'Nobody of the story is in "{sentence}": name {", ".join(cast)}.')
    prompt = ""
    subjects: dict[str, list[SubjectLike | None]] = {character.word: [] for character in cast.values()}
    for place, part in enumerate(parts):
        if place % 2:
            character = by_name[part.lower()]
            prompt += f"a {character.word}"
            subjects[character.word].append(character.portrait)
            continue
        prompt += part
        for word, given in subjects.items():  # somebody without a name stays the prior's
            given.extend(None for _ in re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", part, flags=re.IGNORECASE))
    return prompt, {word: _without_end(given) for word, given in subjects.items() if any(s is not None for s in given)}


def story(
    pipe: Any,
    adapter: MoAAdapter,
    sentences: Sequence[str],
    cast: Mapping[str, Character],
    seed: int,
    keep_scene: bool = False,
    **call: Any,
) -> list[Image.Image]:
    """A picture per sentence; panel i is drawn from the noise of `seed` + i, in the prior's own scene if it is kept."""
    pictures = []
    for panel, sentence in enumerate(sentences, start=seed):
        prompt, who = told(sentence, cast)
        scene = scene_of(pipe, prompt, panel, **call) if keep_scene else None
        pictures.append(draw(pipe, adapter, prompt, who, panel, scene, **call))
    return pictures


def _without_end(given: list[SubjectLike | None]) -> list[SubjectLike | None]:
    while given[-1] is None:
        given = given[:-1]
    return given
