"""The stores of `tests/infra`: the same test on a directory and on S3."""

from tests.infra.conftest import s3_address, s3_store, store

__all__ = ["s3_address", "s3_store", "store"]
