from pathlib import Path

import pytest

from flows.prefect_api import answers, prefect_server, server_address
from infra.errors import UserError
from infra.settings import load_settings
from tests.prefect_process import PrefectServer


def test_the_server_is_the_environments_or_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("demo", tmp_path, {"service.prefect_port": "4321"})
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert server_address(settings) == "http://127.0.0.1:4321/api"
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    assert server_address(settings) == "https://prefect.example/api"


def test_a_server_that_is_there_and_one_that_is_not(
    prefect_process: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_process.address)
    assert answers(prefect_process.address, 30.0)
    with prefect_server(load_settings("demo", tmp_path)) as client:
        assert str(client.api_url).startswith(prefect_process.address)
    monkeypatch.setenv("PREFECT_API_URL", "no address")
    with (
        pytest.raises(UserError, match="No Prefect server answers at no address"),
        prefect_server(load_settings("demo", tmp_path)),
    ):
        pass
