from pathlib import Path

import pytest

from infra.doctor import Check, diagnose
from infra.settings import load_settings
from infra.storage import S3Store


def _checks(preset: str, workspace: Path, **overrides: str) -> dict[str, Check]:
    settings = load_settings(preset, workspace, {key.replace("__", "."): value for key, value in overrides.items()})
    return {check.name: check for check in diagnose(settings)}


def test_demo_needs_little(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    checks = _checks("demo", tmp_path, models__clip__location=str(folder), models__base__location="/absent")
    assert checks["model clip"].ok and str(folder) in checks["model clip"].detail
    assert not checks["model base"].ok and "models.base.location" in checks["model base"].detail
    assert all(checks[name].ok for name in ("ingest.source", "storage", "ray", "accelerator"))
    assert _checks("demo", tmp_path, ingest__source="ffhq:s3://bucket/prefix")["ingest.source"].ok


def test_sd15_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("infra.doctor._hub_cache", lambda: tmp_path / "hub")
    checks = _checks("sd15", tmp_path, ingest__source="ffhq:/absent", ray__address="127.0.0.1:1")
    assert "hf download" in checks["model captioner"].detail
    assert "evaluation/README.md" in checks["model identity"].detail
    assert "/absent" in checks["ingest.source"].detail
    assert "credentials" in checks["storage"].detail
    assert "does not answer" in checks["ray"].detail
    assert not any(checks[name].ok for name in ("model captioner", "model identity", "ingest.source", "storage", "ray"))

    sdxl = _checks("sdxl", tmp_path)["model base"]
    assert not sdxl.ok and "hf download stabilityai/stable-diffusion-xl-base-1.0 --revision 46216598" in sdxl.detail

    revision = load_settings("sd15").models.clip.revision
    (tmp_path / "hub" / "models--openai--clip-vit-large-patch14" / "snapshots" / str(revision)).mkdir(parents=True)
    assert _checks("sd15", tmp_path)["model clip"].ok


@pytest.mark.parametrize(("preset", "gigabytes"), [("demo", None), ("sd15", 40), ("sdxl", 80)])
def test_larger_pictures_need_larger_machines(
    preset: str, gigabytes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check = _checks(preset, tmp_path, storage__root=str(tmp_path))["accelerator"]
    assert check.ok == (gigabytes is None)
    assert gigabytes is None or f"of {gigabytes} GB or more" in check.detail


def test_a_base_that_is_no_stable_diffusion_is_told(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    check = _checks("demo", tmp_path, models__base__location=str(tmp_path))["model base"]
    assert not check.ok and "FluxPipeline" in check.detail


def test_backends_are_told_whichever_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOA_LAVIS_PYTHON", raising=False)
    checks = _checks("demo", tmp_path)
    for name, other in (("captioners", "lavis"), ("segmenters", "detectron2")):
        assert checks[name].ok and checks[name].detail.startswith("transformers is chosen; transformers (usable)")
        assert f"{other} (" in checks[name].detail and "usable" not in checks[name].detail.partition(f"{other} (")[2]
    named = {"models__captioner__backend": "lavis", "models__captioner__location": "blip2_opt/caption_coco_opt6.7b"}
    lavis = _checks("demo", tmp_path, **named)
    assert not lavis["captioners"].ok and "MOA_LAVIS_PYTHON is not set" in lavis["captioners"].detail


def test_a_mirror_is_looked_at_and_not_fetched(
    tmp_path: Path, s3_store: S3Store, s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_address)
    monkeypatch.setenv("MOA_MODEL_CACHE", str(tmp_path / "cache"))
    location = f"s3://{s3_store.bucket}/{s3_store.prefix}"
    assert "no .safetensors" in _checks("demo", tmp_path, models__clip__location=location)["model clip"].detail
    s3_store.put("model.safetensors", b"w")
    check = _checks("demo", tmp_path, models__clip__location=location)["model clip"]
    assert check.ok and "fetched at first use" in check.detail and not (tmp_path / "cache").exists()


def test_an_s3_store_is_asked(tmp_path: Path, s3_store: S3Store) -> None:
    address = {"storage__endpoint_url": str(s3_store.endpoint_url)}
    assert _checks("sd15", tmp_path, storage__root=f"s3://{s3_store.bucket}/x", **address)["storage"].ok
    absent = _checks("sd15", tmp_path, storage__root="s3://no-such-bucket/x", **address)["storage"]
    assert not absent.ok and "no-such-bucket" in absent.detail
