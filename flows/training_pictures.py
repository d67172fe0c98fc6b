"""Pictures on the way: the same people, prompts and seed drawn every few steps, with the averaged weights.

All workers draw, each its share, in as many calls of the U-Net as every other one: nobody waits longer than their own
pictures take, and whoever shares out the model's layers too finds the workers in step. The people are the evaluation's,
who are in no training photo. Nothing of the training changes: weights, random numbers and modes are put back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import infra.torchvision_ops  # noqa: F401

import torch
import torch.distributed as distributed
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flows.painting import Painter, from_png, open_image_encoder, open_pipeline, to_png
from flows.sheets import Cell, captioned
from flows.training_job import TrainingJob, picture_folder, picture_key, picture_step
from flows.training_metrics import EventFiles
from infra.settings import EvaluateSettings, Settings
from moa_model import MoATrainingModule
from preprocessing.segmentation import open_segmenter

_PROMPTS = 4  # of the evaluation's, as far apart as they go: of the 40 of FastComposer's protocol one of each group
_SIDES = (128, 256)  # of a picture in the grid: at least, at most


def chosen_prompts(settings: EvaluateSettings) -> list[str]:
    """Templates of the prompts that are drawn."""
    count = min(_PROMPTS, len(settings.prompts))
    return [settings.prompts[place * len(settings.prompts) // count].template for place in range(count)]


class TrainingPictures:
    """Draws one grid after another: a row for each word's prior, and below it one for each person of that word."""

    def __init__(
        self,
        job: TrainingJob,
        painter: Painter,
        module: MoATrainingModule,
        features: Sequence[Float[Tensor, " F"]],
        done: frozenset[int],
        rank: int,
        workers: int,
        alive: Callable[[], None],
    ) -> None:
        """``features``: of the first photo of each of the job's people; ``done``: steps whose grids are there already;
        ``alive``: called after every batch."""
        self._run_id, self._every, self._done = job.run_id, job.settings.train.pictures_every, done
        self._painter, self._module, self._alive = painter, module, alive
        self._rank, self._workers = rank, workers
        self._people = list(zip(job.people, features, strict=True))
        self._prompts = chosen_prompts(painter.settings.evaluate)
        self._seed = painter.settings.evaluate.seeds[0]
        self._priors: dict[str, list[Image.Image]] = {}  # by word; they never change

    @classmethod
    def open(
        cls, job: TrainingJob, module: MoATrainingModule, rank: int, workers: int, alive: Callable[[], None]
    ) -> Self | None:
        """Load what drawing needs beside the module; None where nobody is to be drawn. To be called by all workers."""
        if not job.people:
            return None
        told: list[Any] = [None]
        if rank == 0:  # the segmenter and the image encoder are used once: by one of all, and then let go
            drawn = job.store.list(picture_folder(job.run_id))
            told = [(_features(job.settings, job.people), frozenset(map(picture_step, drawn)))]
            alive()
        if workers > 1:
            distributed.broadcast_object_list(told, src=0)
        features, done = told[0]
        device = next(module.parameters()).device
        pipe = open_pipeline(job.settings.models, device, unet=module.unet)
        for part in (pipe.text_encoder, pipe.vae):
            part.to(next(module.parameters()).dtype)
        alive()
        painter = Painter(job.settings, pipe, module.adapter, None)
        return cls(job, painter, module, features, done, rank, workers, alive)

    def due(self, step: int) -> bool:
        """Whether there is to be a grid after so many steps."""
        return step % self._every == 0

    def show(self, step: int, files: EventFiles | None, say: Callable[[str], object]) -> None:
        """Draw and hand to ``files``, which one of the workers has; to be called by all. What is there is not drawn
        again."""
        drawn = None if step in self._done else self.draw()
        if isinstance(drawn, str):
            if self._rank == 0:
                say(f"the pictures of step {step} could not be drawn ({drawn})")
        elif files is not None:
            files.add_picture(step, picture_key(self._run_id, step), drawn)

    def draw(self) -> bytes | str:
        """The grid as PNG, or in one sentence why there is none; the same on every worker. To be called by all."""
        cells = [(person, prompt) for person in range(len(self._people)) for prompt in range(len(self._prompts))]
        each = -(-len(cells) // self._workers)  # as many for everybody: some are drawn twice
        mine = [cells[(self._rank + turn * self._workers) % len(cells)] for turn in range(each)]
        drawn: dict[tuple[int, int], bytes] | str
        try:
            with _undisturbed(self._module, self._painter.settings):
                self._draw_priors()
                drawn = {cell: to_png(picture) for cell, picture in zip(mine, self._draw(mine), strict=True)}
        except Exception as error:  # a picture is no reason to end a training
            drawn = f"{type(error).__name__}: {error}"
        everybody: list[dict[tuple[int, int], bytes] | str] = [drawn] * self._workers
        if self._workers > 1:
            distributed.all_gather_object(everybody, drawn)
        together: dict[tuple[int, int], bytes] = {}
        for one in everybody:
            if isinstance(one, str):
                return one
            together |= one
        return self._grid(together)

    def _draw_priors(self) -> None:
        """Once, for every word: whoever keeps to a scene needs all of the prior's own runs anyway."""
        for word in dict.fromkeys(str(person["word"]) for person, _ in self._people):
            if word not in self._priors:
                nobody: list[Mapping[str, Any]] = [{} for _ in self._prompts]
                self._priors[word] = self._pictures([prompt.format(word=word) for prompt in self._prompts], nobody)

    def _draw(self, cells: Sequence[tuple[int, int]]) -> list[Image.Image]:
        words = [str(self._people[person][0]["word"]) for person, _ in cells]
        texts = [self._prompts[prompt].format(word=word) for word, (_, prompt) in zip(words, cells, strict=True)]
        return self._pictures(
            texts, [{word: self._people[person][1]} for word, (person, _) in zip(words, cells, strict=True)]
        )

    def _pictures(self, texts: Sequence[str], subjects: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
        size, pictures = self._painter.settings.evaluate.batch_size, []
        for start in range(0, len(texts), size):
            some = texts[start : start + size]
            drawn = self._painter.draw(some, subjects[start : start + size], [self._seed] * len(some))
            pictures += [one.picture for one in drawn]
            self._alive()
        return pictures

    def _grid(self, drawn: Mapping[tuple[int, int], bytes]) -> bytes:
        cells: list[Cell] = []
        for word, priors in self._priors.items():
            titles = [prompt.format(word=word) for prompt in self._prompts]
            cells += [("", None), *zip(titles, priors, strict=True)]
            for number, (person, _) in enumerate(self._people):
                if person["word"] == word:
                    cells.append((f"{word} {person['name']}", from_png(person["photos"][0])))
                    cells += [("", from_png(drawn[number, prompt])) for prompt in range(len(self._prompts))]
        side = min(max(self._painter.settings.ingest.pixels, _SIDES[0]), _SIDES[1])
        return to_png(captioned(cells, len(self._prompts) + 1, side))


def _features(settings: Settings, people: Sequence[Mapping[str, Any]]) -> list[Float[Tensor, " F"]]:
    """Each one's first photo as the image encoder sees it, cut out as for the evaluation."""
    cutter = Painter(settings, None, None, open_segmenter(settings.models.segmenter, settings.segment))
    crops = [cutter.crop(from_png(one["photos"][0]), f"{one['name']}'s photo") for one in people]
    return list(open_image_encoder(settings.models).encode(crops))


@contextmanager
def _undisturbed(module: MoATrainingModule, settings: Settings) -> Iterator[None]:
    """Draw as an evaluation does; the training finds everything as it was."""
    adapter, device = module.adapter, next(module.parameters()).device
    mode, above = adapter.training, adapter.prior_only_above
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if settings.train.compile:  # other shapes would be compiled anew, for minutes
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            adapter.eval().prior_only_above = settings.evaluate.prior_only_above
            yield
        finally:
            adapter.train(mode).prior_only_above = above
