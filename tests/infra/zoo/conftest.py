from collections.abc import Callable
from pathlib import Path

import pytest

from infra.zoo.pictures import LabelledPictures
from preprocessing.sources.paperfolk_labels import broad, labelled, twice


@pytest.fixture(scope="session")
def pictures() -> LabelledPictures:
    return LabelledPictures(**labelled(broad(1, 32), processes=1))


@pytest.fixture(scope="session")
def pairs() -> LabelledPictures:
    return LabelledPictures(**labelled(twice(3, 32), processes=1))


@pytest.fixture
def check_safe() -> Callable[[Path], None]:
    """Weights in safetensors and text beside them: nothing in the folder can run code."""

    def check(folder: Path) -> None:
        endings = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert ".safetensors" in endings and endings <= {".safetensors", ".json", ".txt"}

    return check
