import tomllib
from pathlib import Path

import pytest

from infra.augmentation_settings import AugmentationSettings
from infra.errors import UserError
from infra.settings import PRESETS, Settings, load_settings, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_lists_every_value(name: str) -> None:
    settings = load_settings(name)
    assert settings.name == name and settings.workspace.is_absolute()
    listed = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    shown = settings.model_dump(mode="json")
    assert _keys(shown) == _keys(listed)
    assert Settings.model_validate(shown) == settings


def _keys(value: object) -> object:
    return {name: _keys(inner) for name, inner in value.items()} if isinstance(value, dict) else None


def test_every_field_says_what_it_is() -> None:
    groups = [Settings, AugmentationSettings, *(field.annotation for field in Settings.model_fields.values())]
    for group in groups:
        for name, field in getattr(group, "model_fields", {}).items():
            assert field.description, f"{group}.{name}"


def test_overrides_are_read_as_toml_and_text_needs_no_quotes(tmp_path: Path) -> None:
    overrides = {
        "train.steps": "7",
        "train.warm_start": "false",
        "evaluate.seeds": "[1, 2]",
        "storage.root": "s3://bucket/12",
        "models.base.location": "123",
        "models.base.revision": "",
    }
    settings = load_settings("demo", tmp_path, overrides)
    assert (settings.train.steps, settings.train.warm_start, settings.evaluate.seeds) == (7, False, [1, 2])
    assert settings.store_root == "s3://bucket/12"
    assert (settings.models.base.location, settings.models.base.revision) == ("123", None)
    assert load_settings("demo", tmp_path).store_root == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.stepz": "1"}, r"no setting 'train.stepz'.*train.steps, train.batch_size"),
        ({"trian.steps": "1"}, r"no setting 'trian.steps'.*train, "),
        ({"name.x": "1"}, "no setting 'name.x'"),
        ({"train": "1"}, "group of settings.*train.steps"),
        ({"train.steps": "many"}, "train.steps: .*not 'many'"),
        ({"train.steps": "0"}, "train.steps: .*greater than or equal to 1, not 0"),
        ({"train.batch_size": "1"}, "train: batch_size 1 is less than workers 2"),
        ({"train.min_workers": "3"}, "train: min_workers 3 is more than workers 2"),
        ({"train.frozen_precision": "bf16"}, "train: frozen_precision bf16 needs precision bf16, not fp32"),
        ({"train.compile": "true"}, "train.compile: .*'reduce-overhead'.*not 'true'"),
        ({"train.sharding": "fsdp", "train.compile": "default"}, "gathers weights in between: set one of them off"),
        (
            {"train.sharding": "fsdp", "train.precision": "bf16", "train.frozen_precision": "bf16"},
            "set frozen_precision to fp32, or sharding to 'fsdp-trained'",
        ),
        ({"train.nccl_env": '["PATH=/x"]'}, "train.nccl_env.0"),
        ({"train.max_timestep": "1000"}, "train.max_timestep: .*999"),  # the schedule has 1000 steps, from 0
        ({"shard.augmentation.zoom": "[1.2, 0.9]"}, "zoom goes from 1.2 to 0.9: write the smaller one first"),
        ({"shard.augmentation.backgrounds": '["blue"]'}, "'grey', 'kept' or 'noise', not 'blue'"),
        ({"shard.augmentation": "1"}, "group of settings.*shard.augmentation.backgrounds"),
        ({"evaluate.seeds": "[1]"}, "evaluate.seeds"),
        ({"evaluate.seeds": "[1, 2, 1]"}, "must all differ"),
        ({"evaluate.prompts": '[{template = "{word} {x}", group = "a", scene = "", object = ""}]'}, "no other braces"),
        ({"evaluate.prompts": '[{template = "x", group = "a", scene = "", object = ""}]'}, "exactly once"),
        ({"evaluate.pair_prompts": '[{template = "x", group = "a"}]'}, "must hold {word} exactly once"),
        ({"evaluate.pair_prompts": "[]"}, "pairs = 8 needs pair_prompts"),
        ({"publish.max_regression.identity": "-0.1"}, "publish.max_regression.identity"),
    ],
)
def test_a_wrong_setting_is_one_sentence(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        load_settings("demo", None, overrides)
    assert "\n" not in str(refusal.value)


def test_a_wrong_preset_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preset 'dmeo': choose demo or sd15"):
        load_settings("dmeo")
    with pytest.raises(UserError, match="no preset"):
        load_settings(str(tmp_path / "absent.toml"))
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(UserError, match="not valid TOML"):
        load_settings(str(tmp_path / "broken.toml"))
    (tmp_path / "short.toml").write_text('name = "short"')
    with pytest.raises(UserError, match=r"field required \(and \d+ more\)"):
        load_settings(str(tmp_path / "short.toml"))


def test_a_preset_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((PRESETS / "demo.toml").read_text().replace("steps = 200", "steps = 5"))
    assert load_settings(str(path)).train.steps == 5


def test_local_models_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings("sd15", overrides={"models.clip.location": "../clip"})
    assert settings.models.identity.location == str(tmp_path / "models" / "facenet-vggface2")
    assert Path(settings.models.clip.location).is_absolute()
    assert settings.models.base.location == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert load_settings("demo").models.base.location == "zoo:base"
