from pathlib import Path

import pytest

from infra.errors import UserError
from infra.settings import load_settings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("notify_secret", "https://hooks.example/T", "service.notify_secret"),  # never the secret itself
        ("notify", "pigeon", "'webhook', 'slack' or 'email'"),
        ("heartbeat_seconds", "5", "greater than or equal to 30"),  # Prefect's own bound
        ("pool", "My Pool", "service.pool"),
        ("refusal_jump", "30", "less than or equal to 1"),
        ("silent_days", "0", "service.silent_days"),
        ("prefect_port", "70000", "service.prefect_port"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name: str, value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_settings("demo", tmp_path, {f"service.{name}": value})
