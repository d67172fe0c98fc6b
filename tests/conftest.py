"""What holds for every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A machine that is busy is no finding, and a fixture that all examples share is meant so.
hypothesis.settings.register_profile(
    "moa",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("moa")


@pytest.fixture(scope="session", autouse=True)
def moa_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pulled releases go into a cache of this run's, also in the processes that tests start."""
    folder = tmp_path_factory.mktemp("moa-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "MOA_CACHE", str(folder))
        yield folder
