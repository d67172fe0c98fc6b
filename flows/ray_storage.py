"""Where Ray Train writes, through a file system that asks again however often it is pickled."""

from pathlib import Path
from typing import Any

from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

from flows.run import Run

_ATTEMPTS = 10  # about a minute; Ray Train takes what fails for the training's end


class PatientS3(S3FileSystem):  # type: ignore[misc]  # pyarrow's classes are untyped
    """S3FileSystem whose copies are as patient: Ray sends it to the controller and to each worker, and pyarrow's own
    pickle leaves the retry strategy out, so that one answer with 500 at a start ends the training."""

    def __init__(self, **options: Any) -> None:
        # A small file as one request: an upload in parts that was completed unanswered cannot be completed again.
        options = {**options, "allow_delayed_open": True}
        super().__init__(retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS), **options)

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments = super().__reduce__()
        return _patient, arguments


def _patient(options: dict[str, Any]) -> PatientS3:
    return PatientS3(**options)


def ray_storage(run: Run, prefix: str) -> tuple[str, FileSystem | None]:
    """`storage_path` and `storage_filesystem` of Ray's RunConfig: the same place as the store's keys under `prefix`."""
    address = run.store.uri(prefix)
    if not address.startswith("s3://"):
        return str(Path(run.settings.store_root).expanduser().absolute() / prefix), None
    endpoint = run.settings.storage.endpoint_url
    scheme, _, host = (endpoint or "").rpartition("://")
    options = {"endpoint_override": host, "scheme": scheme or "https"} if endpoint else {}
    return address.removeprefix("s3://"), PatientS3(**options)
