"""The data stages as flows: the same shards for any number of workers, and what is there is not computed again."""

import pickle
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import RLock
from typing import Any

import infra.torchvision_ops  # noqa: F401, I001  # before diffusers and transformers

import pytest
from diffusers import ModelMixin
from transformers import PreTrainedModel

from flows import ingest, model_stages
from flows.caption import caption
from flows.run import COLUMNS, STAGES, Run
from flows.segment import segment
from flows.shard import shard
from infra.settings import Settings, load_settings
from infra.storage import DirectoryStore
from preprocessing.catalog import ShardRow, load_shard, sweep
from preprocessing.precompute import Precomputer
from preprocessing.shards import read_tar
from tests.tiny_world import tiny_settings, write_models, write_photos
from tests.without_ray import map_shards

PHOTOS = 14


def map_shards_in_threads(
    worker_class: Callable[..., Any],
    items: Iterable[dict[str, Any]],
    concurrency: int,
    arguments: Sequence[Any],
    total: int | None = None,
    gpus: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """`infra.ray_session.map_shards` with as many workers as it says, each in a thread with its own models."""
    workers: queue.Queue[Any] = queue.Queue()
    for _ in range(concurrency):
        workers.put(worker_class(*pickle.loads(pickle.dumps(tuple(arguments)))))

    def work(item: dict[str, Any]) -> dict[str, Any]:
        worker = workers.get()
        try:
            return worker(pickle.loads(pickle.dumps(item)))
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(concurrency) as pool:
        yield from (future.result() for future in as_completed([pool.submit(work, item) for item in items]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    write_photos(root / "ffhq", PHOTOS)
    return root


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "map_shards", map_shards)
    monkeypatch.setattr(model_stages, "map_shards", map_shards)


def settings_of(world: Path, workspace: Path, **changes: object) -> Settings:
    """`changes`: fields of the shard stage's settings."""
    texts = {f"shard.{name}": str(value).lower() for name, value in changes.items()}
    return tiny_settings(world, workspace, {"ingest.source": f"ffhq:{world / 'ffhq'}", **texts})


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A workspace whose four data stages are done; tests may add to its store."""
    settings = settings_of(world, tmp_path_factory.mktemp("done"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "map_shards", map_shards)
        patch.setattr(model_stages, "map_shards", map_shards)
        run_stages(settings)
    return settings


def run_stages(settings: Settings) -> None:
    ingest.ingest.fn(settings)
    caption.fn(settings)
    segment.fn(settings)
    shard.fn(settings)


@pytest.fixture(autouse=True, scope="module")
def captions_name_people() -> Iterator[None]:
    """The tiny captioner's weights are random and name nobody; this one looks at the first pixel."""
    from preprocessing.captioning import TransformersCaptioner

    words = ("man", "woman", "man and a woman")

    def caption_of(self: object, images: Sequence[Any]) -> list[str]:
        return [f"a photo of a {words[sum(image.getpixel((0, 0))) % 3]}" for image in images]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersCaptioner, "caption", caption_of)
        yield


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models' work that is done from here on."""
    names: list[str] = []
    for name in ("moments", "text", "image_embeds", "token"):

        def counting(
            self: Precomputer, *arguments: Any, name: str = name, work: Any = getattr(Precomputer, name)
        ) -> Any:
            names.append(name)
            return work(self, *arguments)

        monkeypatch.setattr(Precomputer, name, counting)
    return names


def digests(rows: Sequence[ShardRow]) -> list[tuple[str, str]]:
    return [(row.shard, row.sha256) for row in rows]


def changed(done: Settings, **changes: object) -> Settings:
    """The same store with other settings of the shard stage: what is added there does no harm to other tests."""
    return done.model_copy(update={"shard": done.shard.model_copy(update=changes)})


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_no_byte(
    workers: int, done: Settings, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "map_shards", map_shards_in_threads)
    monkeypatch.setattr(model_stages, "map_shards", map_shards_in_threads)
    loading = RLock()
    for kind in (PreTrainedModel, ModelMixin):

        def one_at_a_time(of: Any, *arguments: Any, load: Any = kind.from_pretrained.__func__, **options: Any) -> Any:
            with loading:  # loading patches its classes, for one thread of a process; Ray's actors are processes
                return load(of, *arguments, **options)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(one_at_a_time))
    settings = settings_of(world, tmp_path, workers=workers)
    for stage in ("ingest", "caption", "segment"):
        as_many = getattr(settings, stage).model_copy(update={"workers": workers})
        settings = settings.model_copy(update={stage: as_many})
    run_stages(settings)
    one, many = Run(done), Run(settings)
    assert sum(row.samples for row in one.training_shards()) >= PHOTOS // 2 and len(one.training_shards()) == 3
    for stage in many.fingerprints:
        assert digests(many.shards(stage)) == digests(one.shards(stage)), stage
    assert one.store.list("shards/training-") == many.store.list("shards/training-") != []


def test_a_second_run_computes_nothing(done: Settings, computed: list[str]) -> None:
    assert shard.fn(done).done == 0 and computed == []


@pytest.mark.parametrize(
    "change, again",
    [
        ({"reference_variants": 2}, {"image_embeds"}),
        ({"augmentation": load_settings("sd15").shard.augmentation}, {"image_embeds"}),
        ({"reference_pixels": 16}, {"token", "text", "image_embeds"}),  # the crops that decide who is who
        ({"text": False}, set()),
        ({"moments": False, "image_embeds": False}, set()),
        ({"max_photos": 2}, set()),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_a_changed_setting_computes_what_depends_on_it(
    change: dict[str, Any], again: set[str], done: Settings, computed: list[str]
) -> None:
    settings = changed(done, **change)
    shard.fn(settings)
    assert set(computed) == again
    new, old = Run(settings), Run(done)
    assert new.shards("moments") == old.shards("moments")
    assert sum(row.samples for row in new.training_shards()) == sum(row.samples for row in old.training_shards())
    (row, *_) = new.training_shards()
    (sample, *_) = read_tar(load_shard(new.store, row))
    for name in ("moments", "text", "image_embeds"):
        assert (f"{name}.npy" in sample.parts) == getattr(settings.shard, name)


def test_a_shard_above_the_limit_becomes_several(done: Settings) -> None:
    settings = changed(done, max_photos=2, max_bytes=10**8)
    shard.fn(settings)
    split, whole = Run(settings), Run(done)
    rows = split.training_shards()
    assert max(row.samples for row in rows) == 2 and len(rows) > len(whole.training_shards())
    assert shard.fn(settings).done == 0
    pieces = {row.shard.partition("-")[0]: [] for row in rows}
    for row in rows:
        pieces[row.shard.partition("-")[0]] += list(read_tar(load_shard(split.store, row)))
    for row in whole.training_shards():
        assert pieces[row.shard] == list(read_tar(load_shard(whole.store, row)))


def test_new_photos_leave_the_old_columns_alone(world: Path, tmp_path: Path, computed: list[str]) -> None:
    source = write_photos(tmp_path / "ffhq", 4)
    settings = tiny_settings(world, tmp_path / "out", {"ingest.source": f"ffhq:{source}"})
    run_stages(settings)
    before, first = Run(settings).training_shards(), computed.count("moments")
    write_photos(tmp_path / "ffhq", 2, first=6)
    run_stages(settings)
    after = Run(settings).training_shards()
    assert len(after) == len(before) + 1 and set(digests(before)) < set(digests(after))
    assert computed.count("moments") == first + 1  # the new shard's batch


def test_columns_are_not_swept(done: Settings) -> None:
    run = Run(done)
    assert sweep(run.store, run.catalog, (*STAGES, *COLUMNS)) == []
    store = DirectoryStore(Path(done.store_root))
    store.put("shards/moments/litter.tar", b"")
    assert sweep(run.store, run.catalog, (*STAGES, *COLUMNS)) == ["shards/moments/litter.tar"]
