"""Each stage runs with the key of its role, and no role can do what is not its business."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from flows import evaluation_pictures, evaluation_scores, evaluation_split, model_stages
from flows import ingest as ingest_stage
from flows.caption import caption
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.near_duplicates import duplicates
from flows.publish import publish
from flows.releases import promote
from flows.run import Run
from flows.segment import segment
from flows.service_metrics import one_reading
from flows.shard import shard
from flows.stage_log import Outcome, note_run
from infra import s3_reading
from infra.pulling import pull
from infra.settings import Settings
from tests.infra.guarded_s3 import POLICIES, Asked, allows, read_policy, wants
from tests.infra.guarded_server import GuardedS3
from tests.tiny_world import tiny_settings, write_world
from tests.training_here import train_here
from tests.without_ray import map_shards

ROLES = ("ingest", "train", "publish", "pull", "watch")
WORDS = {"BUCKET": "b", "PREFIX": "p", "PHOTOS": "photos"}
CHANGES = {
    "near_duplicates.search": "true",
    "near_duplicates.cosine": "0.9",
    "signatures.workers": "1",
    "train.workers": "1",
    "train.warm_start": "false",
}


def test_there_is_a_policy_for_each_role_and_it_is_said_what_for() -> None:
    assert sorted(path.stem for path in POLICIES.glob("*.json")) == sorted(ROLES)
    about = (POLICIES / "README.md").read_text("utf-8")
    for role in ROLES:
        statements = read_policy(role, WORDS)
        assert f"| `{role}` |" in about and all(one["Effect"] == "Allow" for one in statements)
        for one in statements:
            assert all("*" not in action for action in one["Action"]), "actions are named one by one"
            assert "arn:aws:s3:::b/*" not in one["Resource"] and "*" not in one["Resource"]
            lists = [action for action in one["Action"] if action.startswith("s3:List")]
            assert lists in ([], ["s3:ListBucketMultipartUploads"]) or "Condition" in one or one["Sid"] == "ListPhotos"


@pytest.mark.parametrize(
    ("role", "request_", "allowed"),
    [
        ("pull", ("GET", "/b/p/blobs/sha256/ab/abcd", ""), True),
        ("pull", ("GET", "/b/p/shards/shard/x.tar", ""), False),
        ("pull", ("GET", "/b/other/blobs/x", ""), False),
        ("pull", ("PUT", "/b/p/names/moa/production/0002.json", ""), False),
        ("pull", ("GET", "/b", "list-type=2&prefix=p/releases/moa/"), True),
        ("pull", ("GET", "/b", "list-type=2&prefix=p&max-keys=1"), True),
        ("pull", ("GET", "/b", "list-type=2&prefix=p"), False),
        ("pull", ("GET", "/b", "list-type=2"), False),
        ("pull", ("HEAD", "/b", ""), False),
        ("train", ("HEAD", "/b", ""), True),
        ("train", ("PUT", "/b/p/", ""), True),
        ("train", ("PUT", "/b/p/x", ""), False),
        ("train", ("GET", "/b", "list-type=2&prefix=p/shards/"), False),
        ("pull", ("GET", "/photos/1.jpg", ""), False),
        ("ingest", ("PUT", "/b/p/access/2026-11-29/1.json", ""), True),
        ("train", ("GET", "/b/p/access/2026-11-29/1.json", ""), False),
        ("publish", ("DELETE", "/b/p/access/2026-11-29/1.json", ""), False),
        ("watch", ("PUT", "/b/p/access/2026-11-29/1.json", ""), False),
        ("publish", ("PUT", "/b/p/names/moa/production/0002.json", ""), True),
        ("publish", ("DELETE", "/b/p/releases/moa/0001/manifest.json", ""), False),
        ("publish", ("DELETE", "/b/p/blobs/sha256/ab/abcd", "uploadId=1"), True),
        ("publish", ("PUT", "/b/p/shards/ingest/x.tar", ""), False),
        ("train", ("PUT", "/b/p/names/moa/production/0002.json", ""), False),
        ("train", ("PUT", "/b/p/blobs/sha256/ab/abcd", ""), False),
        ("train", ("PUT", "/b/p/catalog/_delta_log/00000000000000000009.json", ""), False),
        ("train", ("PUT", "/b/p/shards/ingest/x.tar", ""), False),
        ("train", ("GET", "/b/p/shards/caption/x.tar", ""), False),
        ("pull", ("GET", "/b", "uploads&prefix=p/blobs/"), False),
        ("train", ("PUT", "/b/p/runs/r/checkpoints/step-1/x", "partNumber=1&uploadId=2"), True),
        ("ingest", ("PUT", "/b/p/catalog/_delta_log/00000000000000000009.json", ""), True),
        ("ingest", ("PUT", "/photos/1.jpg", ""), False),
        ("ingest", ("GET", "/b/p/blobs/sha256/ab/abcd", ""), False),
        ("ingest", ("GET", "/b/p/runs/r/finished.json", ""), False),
        ("watch", ("GET", "/b/p/catalog/part.parquet", ""), True),
        ("watch", ("GET", "/b/p/shards/ingest/x.tar", ""), False),
        ("watch", ("PUT", "/b/p/stage-runs/ingest/00000001.json", ""), False),
    ],
)
def test_what_a_role_may(role: str, request_: tuple[str, str, str], allowed: bool) -> None:
    statements = read_policy(role, WORDS)
    assert all(allows(statements, asked) for asked in wants(*request_, b"")) is allowed


def test_the_evaluator_denies_as_aws_does() -> None:
    everything = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}
    asked = Asked("s3:GetObject", "arn:aws:s3:::b/x", {})
    assert allows([everything], asked) and not allows([], asked)
    assert not allows([everything, {**everything, "Effect": "Deny"}], asked)
    with pytest.raises(ValueError, match="does not know"):
        allows([{**everything, "NotResource": ["*"]}], asked)
    with pytest.raises(ValueError, match="does not know"):
        allows(
            [{**everything, "Condition": {"IpAddress": {"aws:SourceIp": "::"}}}],
            asked._replace(values={"aws:SourceIp": "::"}),
        )
    body = b"<Delete><Object><Key>p/a</Key></Object><Object><Key>p/b</Key></Object></Delete>"
    assert [one.resource for one in wants("POST", "/b", "delete", body)] == ["arn:aws:s3:::b/p/a", "arn:aws:s3:::b/p/b"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedS3]:
    with GuardedS3(tmp_path_factory.mktemp("s3"), {role: [role] for role in ROLES}) as server:
        yield server


@pytest.fixture(scope="module")
def as_role(server: GuardedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Settings]]:
    """Settings of a tiny world in the bucket; whatever asks the store from then on has the role's key."""
    world = write_world(tmp_path_factory.mktemp("world"), photos=12)
    workspace = tmp_path_factory.mktemp("workspace")
    for path in sorted((world / "ffhq").rglob("*")):
        if path.is_file():
            server.root().upload_file(str(path), server.photos, f"ffhq/{path.relative_to(world / 'ffhq')}")
    where = {
        "storage.root": f"s3://{server.bucket}/{server.prefix}",
        "storage.endpoint_url": server.address,
        "ingest.source": f"ffhq:s3://{server.photos}/ffhq",
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (ingest_stage, model_stages, evaluation_pictures, evaluation_scores, evaluation_split):
            patch.setattr(module, "map_shards", map_shards)
        patch.delenv("AWS_PROFILE", raising=False)

        def settings(role: str) -> Settings:
            for name, value in server.environment(role).items():
                patch.setenv(name, value)
            boto3.setup_default_session()  # boto3 remembers whose keys it had, and so do our clients
            s3_reading._client.cache_clear()
            return tiny_settings(world, workspace, {**CHANGES, **where})

        yield settings


def test_every_stage_runs_with_the_key_of_its_role(
    server: GuardedS3, as_role: Callable[[str], Settings], tmp_path: Path
) -> None:
    """From photos in a bucket to a release that is pulled; not one request of all that is refused."""
    try:
        _every_stage(server, as_role, tmp_path)
    finally:
        assert server.refused() == []


def _every_stage(server: GuardedS3, as_role: Callable[[str], Settings], tmp_path: Path) -> None:
    settings = as_role("ingest")
    for stage in (ingest, duplicates, caption, segment, shard):
        assert stage.fn(settings).done
        note_run(Run(settings).store, stage.name, Outcome.FINISHED, 1.0)
    settings = as_role("train")
    train_here(Run(settings))
    assert evaluate.fn(settings, from_scratch=True).done
    note_run(Run(settings).store, "train", Outcome.FINISHED, 1.0)
    settings = as_role("publish")
    facts = publish.fn(settings, from_scratch=True).facts
    assert facts["release"] == 1 and facts["promoted"]
    promote(settings, "1", "staging", "to look at", "")
    settings = as_role("pull")
    folder = pull(f"{settings.store_root}/moa@production", tmp_path / "adapter", endpoint_url=server.address)
    assert (Path(folder) / "adapter.safetensors").exists()
    settings = as_role("watch")
    assert 'moa_release_number{name="production"} 1.0' in one_reading(settings)


def test_no_role_does_what_is_not_its_business(server: GuardedS3, as_role: Callable[[str], Settings]) -> None:
    """On the server itself: what was there before is there afterwards."""
    at_root = server.root()
    keys = [one["Key"] for one in at_root.list_objects_v2(Bucket=server.bucket)["Contents"]]
    releases = [key for key in keys if key.startswith(f"{server.prefix}/releases/")]
    assert releases
    for role in ROLES:
        as_role(role)
        client = boto3.client("s3", endpoint_url=server.address)
        for key in releases:
            with pytest.raises(ClientError, match="Forbidden|AccessDenied|403"):
                client.delete_object(Bucket=server.bucket, Key=key)
        with pytest.raises(ClientError, match="AccessDenied"):
            client.list_objects_v2(Bucket=server.bucket, Prefix="other/")
        with pytest.raises(ClientError, match="AccessDenied"):
            client.put_object(Bucket=server.photos, Key="ffhq/new.png", Body=b"x")
    assert [one["Key"] for one in at_root.list_objects_v2(Bucket=server.bucket)["Contents"]] == keys
    assert {json.dumps(one) for one in server.refused()}
