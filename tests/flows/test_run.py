"""What counts as done, and what is checked before anything starts."""

import json
from pathlib import Path

import pytest

from flows.run import COLUMNS, STAGES, Run, check_inputs, digest
from infra.errors import UserError
from infra.model_files import fingerprint
from infra.settings import Settings, load_settings
from preprocessing.catalog import ShardRow

# The settings by which a training was named before train.frozen_precision.
TRAIN_OF_BEFORE = set(
    "steps batch_size learning_rate warmup_steps learning_rate_schedule router_learning_rate_factor lambda_router "
    "router_blocks router_foreground lambda_preservation lambda_object max_timestep timestep_exponent "
    "condition_dropout ema_decay seed precision clip_norm spike_factor shuffle_shards".split()
)
MODELS = ("base", "clip", "captioner", "segmenter", "identity")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    parts = {name: ["a library", "a class"] for name in ("unet", "vae", "text_encoder", "tokenizer")}
    (model / "model_index.json").write_text(json.dumps(parts))
    return load_settings("demo", tmp_path / "workspace", {f"models.{name}.location": str(model) for name in MODELS})


def _publish(run: Run, start: str, promote: bool) -> int:
    shards = run.training_shards()
    card = {"run_id": start, "inputs": run.inputs_digest(shards), "start": start, "verdict": {"promote": promote}}
    return run.releases.publish({"adapter": start.encode()}, card).number


def test_nothing_is_new_once_the_gates_decision_is_carried_out(settings: Settings) -> None:
    run = Run(settings)
    assert run.settled() is None
    run.catalog.commit([ShardRow("shard", "a", run.fingerprints["shard"], "shards/shard/a.tar", "0" * 64, 3)])
    assert run.settled() is None
    _publish(run, "release:1", promote=True)
    assert run.settled() is None  # killed before production moved
    first = run.releases.resolve("1")
    run.releases.promote("production", first.id, "passed")
    assert run.settled() == first
    run.catalog.commit([ShardRow("shard", "b", run.fingerprints["shard"], "shards/shard/b.tar", "1" * 64, 3)])
    assert run.settled() is None


@pytest.mark.parametrize(
    "change, remade",
    [
        ({"ingest.pixels": "32"}, {*STAGES, *COLUMNS} - {"signatures", "duplicates"}),  # off in the demo
        ({"caption.num_beams": "3"}, {"caption", "bind", "text", "image_embeds", "shard"}),
        ({"segment.min_area": "0.5"}, {"segment", "bind", "text", "image_embeds", "shard"}),
        ({"shard.reference_variants": "2"}, {"image_embeds", "shard"}),
        ({"shard.augmentation.flip": "0.25"}, {"image_embeds", "shard"}),
        ({"shard.augmentation.backgrounds": '["noise", "kept", "grey"]'}, {"image_embeds", "shard"}),
        ({"shard.augmentation.blur": "1.0"}, set()),  # with probability 0
        ({"shard.augmentation.blur": "1.0", "shard.augmentation.probability": "0.1"}, {"image_embeds", "shard"}),
        ({"shard.reference_pixels": "32"}, {"bind", "text", "image_embeds", "shard"}),
        ({"shard.max_photos": "7"}, {"shard"}),
        ({"shard.text": "false"}, {"shard"}),
        ({"shard.workers": "9", "ingest.source": "folder:/somewhere"}, set()),
        ({"train.steps": "9"}, set()),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_a_setting_remakes_what_depends_on_it(
    change: dict[str, str], remade: set[str], settings: Settings, tmp_path: Path
) -> None:
    models = {f"models.{name}.location": getattr(settings.models, name).location for name in MODELS}
    other = load_settings("demo", tmp_path / "workspace", {**models, **change})
    before, after = Run(settings).fingerprints, Run(other).fingerprints
    assert {name for name in before if before[name] != after[name]} == remade


def test_another_vae_leaves_all_but_the_moments(settings: Settings, tmp_path: Path) -> None:
    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / "base" / part).mkdir(parents=True)
        (tmp_path / "base" / part / "config.json").write_text("{}")
    (tmp_path / "base" / "model_index.json").write_text("{}")
    base = settings.models.base.model_copy(update={"location": str(tmp_path / "base")})
    settings = settings.model_copy(update={"models": settings.models.model_copy(update={"base": base})})
    before = Run(settings).fingerprints
    (tmp_path / "base" / "vae" / "config.json").write_text('{"another": 1}')
    after = Run(settings).fingerprints
    assert {name for name in before if before[name] != after[name]} == {"moments", "shard"}


def test_a_second_text_encoder_decides_the_texts_and_a_base_without_one_keeps_its_names(
    settings: Settings, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    for part in ("vae", "text_encoder", "tokenizer"):
        (base / part).mkdir(parents=True)
        (base / part / "config.json").write_text("{}")
    (base / "model_index.json").write_text("{}")
    models = settings.models.model_copy(
        update={"base": settings.models.base.model_copy(update={"location": str(base)})}
    )
    settings = settings.model_copy(update={"models": models})
    before = Run(settings)
    # As this column's fingerprint was made before there was SDXL.
    assert before.recipes["text"].inputs["models.base text_encoder"] == (
        f"diffusers:{fingerprint(models.base, ('text_encoder', 'tokenizer'))}"
    )
    (base / "text_encoder_2").mkdir()
    (base / "text_encoder_2" / "config.json").write_text("{}")
    after = Run(settings).fingerprints
    assert {name for name in after if before.fingerprints[name] != after[name]} == {"text", "shard"}


def test_a_setting_that_came_later_leaves_trainings_of_before_their_names(settings: Settings) -> None:
    def named(**changes: object) -> str:
        return Run(settings.model_copy(update={"train": settings.train.model_copy(update=changes)})).inputs_digest([])

    known = {name: value for name, value in settings.train.model_dump(mode="json").items() if name in TRAIN_OF_BEFORE}
    assert len(known) == len(TRAIN_OF_BEFORE)
    weights = f"diffusers:{fingerprint(settings.models.base)}", f"transformers:{fingerprint(settings.models.clip)}"
    assert named() == named(compile="default") == digest([], known, *weights)
    assert named(frozen_precision="bf16") != named()


def test_from_scratch_is_not_settled_by_a_warm_start(settings: Settings) -> None:
    run = Run(settings)
    run.catalog.commit([ShardRow("shard", "a", run.fingerprints["shard"], "shards/shard/a.tar", "0" * 64, 3)])
    _publish(run, "release:1", promote=False)
    assert run.settled() is not None and run.settled(from_scratch=True) is None
    _publish(run, "scratch", promote=False)
    found = run.settled(from_scratch=True)
    assert found is not None and found.number == 2


def test_an_evaluation_is_named_by_how_people_are_found(settings: Settings) -> None:
    other = settings.model_copy(update={"segment": settings.segment.model_copy(update={"score_threshold": 0.4})})
    busier = settings.model_copy(update={"segment": settings.segment.model_copy(update={"workers": 7})})
    names = [Run(one).evaluation_fingerprint("people") for one in (settings, other, busier)]
    assert names[0] == names[2] != names[1]


def test_where_and_how_a_training_runs_does_not_name_it(settings: Settings) -> None:
    """So that it goes on with other machines, and with another share of everything on each."""

    def name(**changes: object) -> str:
        return Run(settings.model_copy(update={"train": settings.train.model_copy(update=changes)})).inputs_digest([])

    elsewhere = {"workers": 8, "min_workers": 2, "sharding": "fsdp", "placement": "spread", "gpus_per_worker": 0}
    elsewhere["resize_seconds"] = 5.0
    elsewhere |= {"collectives": "gloo", "nccl_env": ["NCCL_DEBUG=WARN"], "micro_batch_size": 1}
    assert name() == name(**elsewhere) != name(learning_rate=1.0)


def test_a_workspace_that_cannot_be_is_one_sentence(settings: Settings, tmp_path: Path) -> None:
    check_inputs(settings)
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/moa")):
        with pytest.raises(UserError, match="--workspace"):
            check_inputs(settings.model_copy(update={"workspace": place}))
    with pytest.raises(UserError, match="another folder"):
        check_inputs(settings.model_copy(update={"workspace": tmp_path / "a[1]"}))


def test_a_base_that_is_no_stable_diffusion_is_told_before_anything_starts(settings: Settings) -> None:
    Path(settings.models.base.location, "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UserError, match="FluxPipeline"):
        check_inputs(settings)


def test_filters_and_binding_redo_the_training_shards_and_nothing_before(settings: Settings) -> None:
    def redone(**changes: object) -> set[str]:
        other = {
            group: getattr(settings, group).model_copy(update={name: value})
            for key, value in changes.items()
            for group, name in [key.split("__")]
        }
        before, after = Run(settings).fingerprints, Run(settings.model_copy(update=other)).fingerprints
        return {stage for stage in before if before[stage] != after[stage]}

    bound = {"bind", "text", "image_embeds", "shard"}
    assert redone(filter__need_face=True) == redone(filter__max_people=3) == redone(binding__margin=0.1) == bound
    assert redone(filter__find_faces=True) == {"segment", *bound}


def test_crops_that_are_made_while_training_name_the_training(settings: Settings) -> None:
    """They are in no shard: another augmentation is another training, unless the crops are in the shards."""

    def named(embeds: bool, **augmentation: object) -> str:
        how = settings.shard.augmentation.model_copy(update=augmentation)
        shard = settings.shard.model_copy(update={"image_embeds": embeds, "augmentation": how})
        return Run(settings.model_copy(update={"shard": shard})).inputs_digest([])

    assert named(True) == named(True, flip=0.1) != named(False) != named(False, flip=0.1)
