"""Pictures on the way: the same people, prompts and seed drawn every few steps, with the averaged weights.

All workers draw, each for some of the prompts, and as much as every other one: nobody waits longer than their own
pictures take. The people are the evaluation's, who are in no training photo. Weights, random numbers and modes are put
back.
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
from torch.distributed.tensor import DTensor

from flows.painting import Painter, from_png, open_image_encoder, open_pipeline, to_png
from flows.sheets import captioned
from flows.training_job import TrainingJob, picture_folder, picture_key, picture_step
from flows.training_metrics import EventFiles
from infra.settings import Settings
from moa_model import MoATrainingModule
from preprocessing.segmentation import open_segmenter

_SIDES = (128, 256)  # of a picture in the grid: at least, at most


Scene = tuple[str, int]
"""A word and a prompt: what the prior draws, and what every person of that word is drawn into."""
Cell = tuple[Scene, int | None]
"""A scene with a person, None = nobody: the prior's own."""


def share(words: Sequence[str], prompts: Sequence[str], rank: int, workers: int) -> tuple[list[Cell], list[Cell]]:
    """The prior's cells and the people's that one of the workers draws, of people with these words.

    Each draws whole scenes, so that nobody needs the prior's run of another one's. All have as many of both kinds: what
    does not come out even is drawn twice.
    """
    scenes: list[Scene] = [(word, prompt) for word in dict.fromkeys(words) for prompt in range(len(prompts))]
    each = -(-len(scenes) // workers)
    mine = [scenes[(rank + turn * workers) % len(scenes)] for turn in range(each)]
    cells: list[Cell] = [(scene, person) for scene in mine for person, word in enumerate(words) if word == scene[0]]
    most = each * max(words.count(word) for word in words)
    return [(scene, None) for scene in mine], cells + [cells[0]] * (most - len(cells))


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
        files: EventFiles | None,
        alive: Callable[[], None],
    ) -> None:
        """``features``: of the first photo of each of the job's people; ``done``: steps whose grids are there already;
        ``files``: of rank 0, for the grids; ``alive``: called after every batch."""
        self._run_id, self._every, self._done = job.run_id, job.settings.train.pictures_every, done
        self._files = files
        self._painter, self._module, self._alive = painter, module, alive
        self._rank, self._workers = rank, workers
        self._people, self._features = job.people, features
        self._prompts = _far_apart(job.settings)
        self._words = [str(person["word"]) for person in job.people]
        self._priors: dict[Cell, bytes] = {}  # of all workers; they never change

    @classmethod
    def open(
        cls,
        job: TrainingJob,
        module: MoATrainingModule,
        continued: int,
        rank: int,
        workers: int,
        alive: Callable[[], None],
        say: Callable[[str], object],
    ) -> Self | None:
        """Load what drawing needs beside the module; None where nobody is to be drawn. To be called by all workers.

        ``continued``: the step after which this attempt goes on; ``say``: told what cannot be drawn or written. Nor is
        a module drawn with whose weights are cut up among the workers: they come together in its own forward alone.
        """
        if not job.people:
            return None
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            if rank == 0:
                say("no pictures are drawn on the way: each worker has but a part of the weights")
            return None
        told: list[Any] = [None]
        files = None
        if rank == 0:  # the segmenter and the image encoder are used once: by one of all, and then let go
            drawn = job.store.list(picture_folder(job.run_id))
            told = [(_features(job.settings, job.people), frozenset(map(picture_step, drawn)))]
            # Apart from the curves: they show photos, and may have to go without them.
            files = EventFiles(job.store, f"runs/{job.run_id}/tensorboard/pictures", continued, tell=say)
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
        return cls(job, painter, module, features, done, rank, workers, files, alive)

    def due(self, step: int) -> bool:
        """Whether there is to be a grid after so many steps."""
        return step > 0 and step % self._every == 0

    def missing(self, step: int) -> bool:
        """Whether there is to be one, and is none: whoever was stopped right after a checkpoint has not drawn its."""
        return self.due(step) and step not in self._done

    def show(self, step: int, say: Callable[[str], object]) -> None:
        """Draw, store and show; to be called by all workers. What is there is shown, and not drawn again."""
        drawn = self.draw() if self.missing(step) else None
        if isinstance(drawn, str):
            if self._files is not None:
                say(f"the pictures of step {step} could not be drawn ({drawn})")
        elif self._files is not None:
            grid = None if drawn is None else self.grid(drawn)
            self._files.add_picture(step, picture_key(self._run_id, step), grid)
            self._files.publish()

    def close(self) -> None:
        """Wait until what was drawn is stored."""
        if self._files is not None:
            self._files.close()

    def draw(self) -> dict[Cell, bytes] | str:
        """Everybody's pictures as PNG, or in one sentence why there are none; the same on every worker. To be called by
        all."""
        priors, cells = share(self._words, self._prompts, self._rank, self._workers)
        try:
            with _undisturbed(self._module, self._painter.settings):
                drawn = dict(self._pictures([] if self._priors else priors)) | dict(self._pictures(cells))
        except Exception as error:  # a picture is no reason to end a training
            return self._together(f"{type(error).__name__}: {error}")
        return self._together(drawn)

    def _pictures(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, bytes]]:
        """As an evaluation draws them, batch by batch. Where scenes are kept, the priors' runs are those that are."""
        options = self._painter.settings.evaluate
        for start in range(0, len(cells), options.batch_size):
            some = cells[start : start + options.batch_size]
            texts = [self._prompts[prompt].format(word=word) for (word, prompt), _ in some]
            seeds = [options.seeds[0]] * len(some)
            subjects = [{} if person is None else {scene[0]: self._features[person]} for scene, person in some]
            if options.keep_scene and not any(subjects):
                images = self._painter.scenes(texts, seeds).images
            else:
                images = [one.picture for one in self._painter.draw(texts, subjects, seeds)]
            self._alive()
            yield from zip(some, map(to_png, images), strict=True)

    def _together(self, drawn: dict[Cell, bytes] | str) -> dict[Cell, bytes] | str:
        everybody: list[dict[Cell, bytes] | str] = [drawn] * self._workers
        if self._workers > 1:
            distributed.all_gather_object(everybody, drawn)
        together = dict(self._priors)
        for one in everybody:
            if isinstance(one, str):
                return one
            together |= one
        self._priors = {cell: png for cell, png in together.items() if cell[1] is None}
        return together

    def grid(self, drawn: Mapping[Cell, bytes]) -> bytes:
        """What was drawn beside whom it shows, as PNG."""
        pictures = {cell: from_png(png) for cell, png in drawn.items()}
        cells: list[tuple[str, Image.Image | None]] = []
        columns = range(len(self._prompts))
        for word in dict.fromkeys(self._words):
            cells.append(("the prior", None))
            cells += [(self._prompts[one].format(word=word), pictures[(word, one), None]) for one in columns]
            for number, person in enumerate(self._people):
                if person["word"] != word:
                    continue
                cells.append((f"{word} {person['name']}", from_png(person["photos"][0])))
                cells += [("", pictures[(word, one), number]) for one in columns]
        side = min(max(self._painter.settings.ingest.pixels, _SIDES[0]), _SIDES[1])
        return to_png(captioned(cells, len(columns) + 1, side))


def _far_apart(settings: Settings) -> list[str]:
    """Templates of the prompts that are drawn: of 40 in four groups, one of each."""
    prompts = settings.evaluate.prompts
    count = min(settings.train.pictures_prompts, len(prompts))
    return [prompts[place * len(prompts) // count].template for place in range(count)]


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
