"""A claims benchmark in miniature: random models of the production classes and samples that nobody had to draw."""

from pathlib import Path

import numpy as np

from flows.training_samples import TrainingSample
from tests.benchmarks.claims.world import World
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS
from tests.tiny_world import tiny_settings, write_models, write_people


def tiny_world(root: Path, people: int = 4) -> World:
    """A world with random models, a few made-up samples (one or two subjects) and evaluation people."""
    write_models(root / "models")
    write_people(root / "celeba", people)
    world = World(tiny_settings(root, root / "workspace", {"evaluate.prior_only_above": "900"}))
    world.samples = [_sample(number) for number in range(12)]
    return world


def _sample(number: int) -> TrainingSample:
    stream = np.random.default_rng(number)
    subjects = 1 + number % 3 // 2
    masks = np.zeros((subjects, 8, 8), np.float16)
    for subject in range(subjects):
        masks[subject, 2:, 4 * subject : 4 * subject + 3] = 1
    moments = np.concatenate([stream.normal(size=(4, 8, 8)), np.full((4, 8, 8), -8.0)])
    return TrainingSample(
        str(number),
        moments.astype(np.float16),
        stream.normal(size=(TOKENS, TEXT_DIM)).astype(np.float16),
        stream.normal(size=(subjects, 2, IMAGE_DIM)).astype(np.float16),
        tuple(range(5, 5 + subjects)),
        masks,
    )
