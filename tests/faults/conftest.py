from tests.infra.conftest import s3_address

__all__ = ["s3_address"]
