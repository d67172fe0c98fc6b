import os
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.training_runs import CHANGES, Training, prepare
from tests.infra.conftest import s3_address, s3_store

__all__ = ["s3_address", "s3_store"]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trainings' workspaces and their models lie."""
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="session")
def calm(root: Path) -> dict[str, Any]:
    """What comes out of a training to which nothing happens."""
    with Training(prepare(root, "calm", CHANGES)) as training:
        return training.start().result()


@pytest.fixture
def trainings(root: Path) -> Iterator[Callable[..., Training]]:
    """A training in a workspace of this name, with these settings changed; ended with the test."""
    with ExitStack() as stack:
        yield lambda name, **changes: stack.enter_context(
            Training(prepare(root, name, CHANGES | {key.replace("__", "."): value for key, value in changes.items()}))
        )


@pytest.fixture(scope="session")
def faults_seed() -> str:
    return os.environ.get("FAULTS_SEED") or secrets.token_hex(4)


@pytest.fixture
def chance(faults_seed: str, request: pytest.FixtureRequest) -> random.Random:
    """This test's own stream of random moments and victims, another one in each session."""
    print(f"the same moments again: FAULTS_SEED={faults_seed}")
    return random.Random(f"{faults_seed} {request.node.name}")
