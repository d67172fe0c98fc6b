"""Time lapse (app. E.2): one face, and a word that turns into another, as "kid" into "person".

Axes: T tokens, D text width.
"""

from typing import Any

import torch
from PIL import Image

from infra.errors import UserError
from moa_model.adapter import MoAAdapter
from moa_model.binding import SubjectLike, token_index, word_spans
from moa_model.stock_pipelines import encoded


def time_lapse(
    pipe: Any,
    adapter: MoAAdapter,
    prompt: str,
    words: tuple[str, str],
    subject: SubjectLike,
    frames: int,
    seed: int,
    **call: Any,
) -> list[Image.Image]:
    """`frames` pictures of one person and seed while the first of `words` becomes the second; `prompt` has the first.

    The line runs between the two prompts' text embeddings. They differ at the word's token and, since CLIP's text tower
    is causal, behind it; both the prior and eq. 8's t read from them. The ends are the plain pictures of each word.
    Raises UserError where a word is not in the prompt, the two fall on different tokens, or for fewer than two frames.
    """
    if frames < 2:
        raise UserError(f"A time lapse has at least 2 frames, not {frames}.")
    before, after = words
    spans = word_spans(prompt, before)
    if not spans:
        raise UserError(f'The word "{before}" is not in the prompt "{prompt}": name a word of the prompt.')
    start, end = spans[0]
    later = f"{prompt[:start]}{after}{prompt[end:]}"
    places = (
        token_index(pipe.tokenizer, prompt, (start, end)),
        token_index(pipe.tokenizer, later, (start, start + len(after))),
    )
    if places[0] is None or places[0] != places[1]:
        raise UserError(f'"{before}" and "{after}" are not the same number of tokens: take another pair of words.')
    first, second = encoded(pipe, prompt), encoded(pipe, later)
    bound = adapter.bind(pipe, prompt, {before: subject})
    return [
        pipe(
            # The unconditional half is the same for both, and stays.
            **{name: torch.lerp(one, second[name], share) for name, one in first.items()},
            cross_attention_kwargs=bound,
            generator=torch.Generator().manual_seed(seed),
            **call,
        ).images[0]
        for share in torch.linspace(0, 1, frames).tolist()
    ]
