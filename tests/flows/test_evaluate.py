"""Any model judged by the protocol that releases are judged by; the models draw and are measured in this process."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import pytest
import torch

from flows import cli, evaluation_pictures, evaluation_scores, session
from flows import evaluate as stage
from flows.compare import compare_models
from flows.contenders import evaluated_models
from flows.evaluation_pictures import read_pictures
from flows.painting import open_pipeline
from flows.run import Run, StageResult
from infra.errors import UserError
from infra.settings import Settings
from moa_model import MoAAdapter
from tests.ip_adapter_models import write_ip_adapter
from tests.moa_model.conftest import trained_like
from tests.tiny_models import IMAGE_DIM
from tests.tiny_world import tiny_changes, tiny_settings, write_models, write_people, write_photos
from tests.without_ray import map_shards

PAIR = {"evaluate.pairs": "1", "evaluate.pair_prompts": '[{template = "a {word}", group = "pairs"}]'}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry of two releases, the first in production; nothing of them was ever evaluated."""
    world = tmp_path_factory.mktemp("world")
    write_models(world / "models")
    write_people(world / "celeba")
    write_photos(world / "ffhq", 1)
    settings = tiny_settings(world, world / "workspace", PAIR)
    run, unet = Run(settings), open_pipeline(settings.models).unet
    write_ip_adapter(world / "ip-adapter", unet)
    for seed in (0, 1):
        torch.manual_seed(seed)
        trained_like(MoAAdapter.for_unet(unet, IMAGE_DIM)).save_pretrained(world / f"adapter-{seed}")
        files = {path.name: path.read_bytes() for path in (world / f"adapter-{seed}").iterdir()}
        release = run.releases.publish(files, {"run_id": f"of-another-store-{seed}"})
        if not seed:
            run.releases.promote("production", release.id, "a test")
    return settings


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluation_pictures, evaluation_scores):
            patch.setattr(module, "map_shards", map_shards)
        yield


@pytest.fixture(scope="module")
def judged(settings: Settings, without_ray: None) -> dict[str, StageResult]:
    """Kind of model → its evaluation, in this order."""
    folder = Path(settings.workspace).parent / "ip-adapter"
    models = {"prior": "prior", "release": "release:2", "ip-adapter": f"ip-adapter:{folder}"}
    return {kind: stage.evaluate.fn(settings, model=model) for kind, model in models.items()}


def test_every_model_draws_the_same_cells_and_is_measured_by_the_same_judges(
    settings: Settings, judged: dict[str, StageResult]
) -> None:
    facts = [one.facts for one in judged.values()]
    assert len({one["evaluation"] for one in facts}) == 1 and len({one["folder"] for one in facts}) == 3
    for kind, one in judged.items():
        metrics = one.facts["metrics"]
        assert (metrics["pictures"], metrics["pair_pictures"], metrics["subjects"]) == (8, 2, 2), kind
        assert metrics["instruments"] == facts[0]["metrics"]["instruments"]
        assert one.facts["production_release"] == 1 and one.facts["production"]["router_iou"] is not None
        for name in ("scores.parquet", "metrics.json", "pictures.json", "model.json"):
            assert Run(settings).store.exists(f"{one.facts['folder']}/{name}"), (kind, name)
        assert one.facts["pictures"].endswith("drawn") and list(Path(one.facts["pictures"]).glob("*.tar"))
    run = Run(settings)
    drawn = {kind: read_pictures(run, one.facts["folder"]) for kind, one in judged.items()}
    cells = [cell for cell, _, _ in drawn["release"]]
    assert cells == [cell for cell, _, _ in drawn["ip-adapter"]]
    assert [cell for cell in cells if not cell.names] == [cell for cell, _, _ in drawn["prior"]], "each drawn once"


def test_the_prior_is_worth_what_the_prior_is_worth(judged: dict[str, StageResult]) -> None:
    metrics = judged["prior"].facts["metrics"]
    assert metrics["identity"] == metrics["prior_identity"] and metrics["identity_gain"]["mean"] == 0
    assert metrics["prior_fidelity"]["mean"] == 0 == metrics["pair_prior_fidelity"]["mean"]
    assert metrics["pair_identity"] == metrics["prior_pair_identity"]
    for kind in ("release", "ip-adapter"):
        other = judged[kind].facts["metrics"]
        assert other["prior_identity"] == metrics["prior_identity"], "the prior of all is the same"
        assert other["prior_fidelity"]["mean"] > 0


def test_what_has_no_router_has_none_of_its_measures(judged: dict[str, StageResult]) -> None:
    for kind, one in judged.items():
        routed = [one.facts["metrics"][name] for name in ("router_auc", "router_iou", "router_contrast")]
        assert all(routed) if kind == "release" else not any(routed), kind


def test_what_is_measured_is_not_drawn_again(
    settings: Settings, judged: dict[str, StageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_pictures, "map_shards", lambda *_, **__: pytest.fail("drawn again"))
    for model in ("prior", "release:production", "moa@2"):
        again = stage.evaluate.fn(settings, model=model)
        assert (again.done, again.before) == (0, 1), model
    assert stage.evaluate.fn(settings, model="release:1").facts["production"] is None, "it is production"


def test_another_strength_is_another_model_and_the_same_protocol(settings: Settings, judged: Any) -> None:
    before = judged["ip-adapter"].facts
    file = Path(settings.workspace).parent / "ip-adapter" / "ip-adapter_tiny.safetensors"
    full = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"ip_adapter_scale": 1.0})})
    more = stage.evaluate.fn(full, model=f"ip-adapter:{file}").facts
    assert more["evaluation"] == before["evaluation"] and more["folder"] != before["folder"]
    assert more["metrics"]["prior_fidelity"]["mean"] > before["metrics"]["prior_fidelity"]["mean"]


def test_what_was_judged_and_is_no_release_is_found(settings: Settings, judged: dict[str, StageResult]) -> None:
    run, protocol = Run(settings), judged["prior"].facts["evaluation"]
    found = dict(evaluated_models(run, protocol))
    assert found.pop("the prior alone") == judged["prior"].facts["folder"]
    assert found["IP-Adapter ip-adapter_tiny at scale 0.6"] == judged["ip-adapter"].facts["folder"]
    run.store.put(f"models-evaluated/unfinished/{protocol}/model.json", b'{"model": "prior"}')
    assert len(evaluated_models(run, protocol)) == len(found) + 1 and evaluated_models(run, "another") == []


def test_evaluated_models_are_compared(settings: Settings, judged: dict[str, StageResult]) -> None:
    found = compare_models(settings, "production", "prior")
    assert (found["first"], found["second"], found["pictures"]) == ("moa@1", "prior", 10)
    row = next(row for row in found["measures"] if row["measure"] == "prior_fidelity")
    assert row["second"] == 0 and row["difference"] == pytest.approx(-row["first"]) and row["winner"] == "prior"
    assert found["absent"]["router_iou"] == "moa@1"


def test_the_command_shows_numbers_and_where_the_pictures_are(
    settings: Settings, judged: dict[str, StageResult], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    """As people type it, but for Prefect and Ray."""
    world = Path(settings.workspace).parent
    changes = [part for key, value in (tiny_changes(world) | PAIR).items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setattr(session, "machinery", lambda _: nullcontext())
    monkeypatch.setattr(stage, "evaluate", stage.evaluate.fn)
    monkeypatch.setenv("COLUMNS", "200")

    def moa(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moa", *arguments, "--workspace", str(settings.workspace), *changes])
        code = cli._run()
        said = capsys.readouterr()
        return code, said.out, said.err

    shutil.copytree(world / "ip-adapter", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    code, out, err = moa("evaluate", "--model", "ip-adapter:mine")
    assert code == 0, err
    for said in ("IP-Adapter ip-adapter_tiny", "release 1, production", "Identity", "Pictures: ", "drawn"):
        assert said in out, said
    assert "IP-Adapter ip-adapter_tiny has no router maps: the router's measures are absent." in out
    for arguments, says in (
        (("--model", "sd:1"), "'sd:1' is no model: write prior, release:7"),
        (("--model", "release:9"), "no release 9"),
        (("--model", "ip-adapter:nowhere.safetensors"), "There is no IP-Adapter at"),
        (("--model", "prior", "--from-scratch"), "give one"),
    ):
        code, out, err = moa("evaluate", *arguments)
        assert code == 2 and err.startswith("moa: ") and err.count("\n") == 1 and says in err, (arguments, err)


def test_a_model_is_needed(settings: Settings) -> None:
    with pytest.raises(UserError, match="There is no release 'piror'"):
        stage.evaluate.fn(settings, model="piror")
