"""What Ray Train is given to write with is as patient in its other processes: real HTTP that is answered with 500."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import FileSystem, FileType
from ray import cloudpickle

from flows.ray_storage import ray_storage
from flows.run import Run
from infra.settings import load_settings
from infra.storage import S3Store
from tests.infra.faulty_s3 import FaultyS3, faulty_s3

Place = tuple[FaultyS3, str, FileSystem]


@pytest.fixture
def place(s3_store: S3Store, tmp_path: Path) -> Iterator[Place]:
    """The server between, and what a worker gets: Ray pickles it to the controller, which pickles it again."""
    with faulty_s3(s3_store.endpoint_url or "") as server:
        changes = {"storage.root": f"s3://{s3_store.bucket}/data", "storage.endpoint_url": server.address}
        path, filesystem = ray_storage(Run(load_settings("demo", tmp_path, changes)), "runs/1/attempts")
        assert path == f"{s3_store.bucket}/data/runs/1/attempts"
        yield server, path, cloudpickle.loads(cloudpickle.dumps(cloudpickle.loads(cloudpickle.dumps(filesystem))))


def test_a_file_is_found_through_more_500s_than_pyarrows_own_client_bears(place: Place) -> None:
    server, path, filesystem = place
    filesystem.create_dir(path)
    server.faults = {"marker": ["", *["500"] * 4, ""]}
    with filesystem.open_output_stream(f"{path}/marker"):
        pass
    assert filesystem.get_file_info(f"{path}/marker").type == FileType.File
    assert len([key for key in server.asked if "marker" in key]) == 6, server.asked


def test_and_where_requests_were_carried_out_all_the_same(place: Place) -> None:
    server, path, filesystem = place
    server.unreliable = random.Random(5), 0.2
    for number in range(8):
        filesystem.create_dir(f"{path}/{number}")
        with filesystem.open_output_stream(f"{path}/{number}/state") as stream:
            stream.write(b"%d" % number)
        assert filesystem.get_file_info(f"{path}/{number}/state").size == len(str(number))
    assert server.failed > 4
    assert not [key for key in server.asked if "upload" in key]  # nothing that cannot be completed twice


def test_a_folder_is_a_plain_path(tmp_path: Path) -> None:
    run = Run(load_settings("demo", tmp_path, {}))
    path, filesystem = ray_storage(run, "runs/1/attempts")
    assert filesystem is None and path == str(Path(run.settings.store_root).absolute() / "runs/1/attempts")
