"""The entry point on the cluster, as far as it comes without a cluster; the rest is in test_cluster_job.py."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from flows import job, job_records
from flows.job_records import NO_REQUEST, Attempt
from flows.run import Run
from infra.code_version import code_digest
from infra.settings import Settings, load_settings

ATTEMPT = Attempt("moa-caption-0", 1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "workspace").mkdir()
    return load_settings("demo", tmp_path / "workspace", {"storage.root": str(tmp_path / "store")})


@pytest.fixture
def request_there(settings: Settings) -> dict[str, Any]:
    return dict(json.loads(job_records.request_for(Run(settings), "caption", {})))


def _main(settings: Settings, request: dict[str, Any], monkeypatch: pytest.MonkeyPatch, sha256: str = "") -> int:
    store, data = Run(settings).store, json.dumps(request).encode()
    store.put(ATTEMPT.key("job.json"), data)
    words = ["--store", settings.store_root, "--name", ATTEMPT.name, "--number", "1"]
    words += ["--sha256", sha256 or job_records.sha256(data)]
    monkeypatch.setattr(sys, "argv", ["job", *words])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return job.main()


def _refused(settings: Settings) -> str:
    came = job_records.outcome(Run(settings).store, ATTEMPT)
    assert came is not None
    return str(came["refused"])


def test_a_store_without_the_request_is_named(
    settings: Settings,
    request_there: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _main(settings, request_there, monkeypatch, sha256="0" * 64) == NO_REQUEST
    assert settings.store_root in capsys.readouterr().out
    assert job_records.outcome(Run(settings).store, ATTEMPT) is None


def test_other_code_is_refused(
    settings: Settings, request_there: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {**request_there, "code": "0" * 12, "code_name": "moa 9.9 (000000000000)", "settings": "of another time"}
    assert _main(settings, request, monkeypatch) == 2
    assert "moa 9.9 (000000000000)" in _refused(settings) and code_digest() in _refused(settings)


def test_other_models_are_refused(
    settings: Settings, request_there: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {**request_there, "fingerprints": {**request_there["fingerprints"], "segment": "another"}}
    assert _main(settings, request, monkeypatch) == 2
    assert "other model files for 'segment'" in _refused(settings)
    of_training, of_evaluation = (job_records.fingerprints(Run(settings), name) for name in ("train", "evaluate"))
    assert set(of_training) - set(of_evaluation) == {"train"} and set(of_evaluation) - set(of_training) == {"evaluate"}


def test_a_workspace_of_another_machine_is_replaced(settings: Settings, request_there: dict[str, Any]) -> None:
    assert job._settings(request_there).workspace == settings.workspace
    assert job._settings(request_there).ray.address == "auto"
    settings.workspace.rmdir()
    ours = {**request_there["settings"], "ingest": {**request_there["settings"]["ingest"], "source": "folder:/x"}}
    with pytest.raises(job.UserError, match="which the cluster does not see"):
        job._settings({**request_there, "settings": ours})
    ours["evaluate"] = {**ours["evaluate"], "source": "celeba:/x"}
    found = job._settings({**request_there, "settings": ours})
    assert found.workspace != settings.workspace and found.workspace.is_dir()
    assert found.store_root == settings.store_root


def test_only_stages_are_run() -> None:
    assert all(callable(job._stage(name)) for name in job._STAGES)
    with pytest.raises(ValueError, match="no stage"):
        job._stage("os:system")
