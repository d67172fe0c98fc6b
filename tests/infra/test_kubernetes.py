"""The manifests as kustomize makes them: valid, restricted, without secrets, and Ray's ports for Ray alone."""

import json
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes"
BUILDS = ["overlays/small", "overlays/production", "retrain-job"]
RAY_FIELDS = json.loads((Path(__file__).parents[1] / "data/kuberay/ray.io-v1.json").read_text("utf-8"))
VERSION = "1.34"
ANNOUNCED = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"  # tests/faults/test_preemption.py: what Ray makes of it
pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which has kustomize, is not installed")
Manifest = dict[str, Any]


def _built(build: str) -> list[Manifest]:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER / build)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=BUILDS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return _built(request.param)


def _pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod's template, those of Ray's machines among them."""
    for one in manifests:
        name, spec = f"{one['kind']} {one['metadata']['name']}", one.get("spec", {})
        if "template" in spec:
            yield name, spec["template"]
        cluster = spec.get("rayClusterSpec", spec) if one["kind"].startswith("Ray") else {}
        for group in [*([cluster["headGroupSpec"]] if cluster else []), *cluster.get("workerGroupSpecs", [])]:
            yield f"{name} {group.get('groupName', 'head')}", group["template"]


def test_every_manifest_is_valid(manifests: list[Manifest]) -> None:
    """Kubernetes' own by its published schema, every field known; Ray's by the fields of KubeRay's CRDs."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for one in manifests:
        if one["apiVersion"] == "ray.io/v1":
            _check_ray(one, RAY_FIELDS[one["kind"]], one["kind"])
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            validate.validate(one, VERSION, strict=True)
    for _, template in _pods(manifests):
        labelled = {"metadata": {"name": "x", **template["metadata"]}, "spec": template["spec"]}
        pod = {"apiVersion": "v1", "kind": "Pod", **labelled}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            validate.validate(pod, VERSION, strict=True)


def _check_ray(value: Any, schema: Manifest, where: str) -> None:
    import jsonschema

    jsonschema.validate(value, _without_templates(schema))


def _without_templates(schema: Any) -> Any:
    """As JSON schema: a pod's template is checked by Kubernetes' own."""
    if isinstance(schema, dict):
        if schema.get("podTemplate"):
            return {"type": "object"}
        return {name: _without_templates(one) for name, one in schema.items()}
    return schema


def test_a_wrong_field_is_found() -> None:
    import jsonschema

    (cluster,) = [one for one in _built("overlays/small") if one["kind"] == "RayCluster"]
    cluster["spec"]["workerGroupSpecs"][0]["minimumReplicas"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minimumReplicas"):
        _check_ray(cluster, RAY_FIELDS["RayCluster"], "RayCluster")


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    """What the namespace's level "restricted" asks, and a root file system that nobody writes to."""
    found = list(_pods(manifests))
    assert found
    for name, template in found:
        spec = template["spec"]
        about = spec["securityContext"]
        assert about["runAsNonRoot"] is True and about["runAsUser"] > 0, name
        assert about["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert not any("hostPath" in volume for volume in spec.get("volumes", [])), name
        for box in [*spec["containers"], *spec.get("initContainers", [])]:
            own = box["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            writable = {mount["mountPath"] for mount in box["volumeMounts"] if not mount.get("readOnly")}
            assert "/tmp" in writable, f"{name} has nowhere to write"


def test_resources_priorities_and_grace_are_set(manifests: list[Manifest]) -> None:
    for name, template in _pods(manifests):
        spec = template["spec"]
        work = "ray-worker" in str(template["metadata"]["labels"])
        assert spec["priorityClassName"] == ("moa-work" if work else "moa-service"), name
        assert not work or spec["terminationGracePeriodSeconds"] >= 120, name
        for box in spec["containers"]:
            announced = {one["name"]: one.get("value") for one in box.get("env", [])}.get(ANNOUNCED)
            assert not work or 30 < float(announced or 0) <= spec["terminationGracePeriodSeconds"] - 15, name
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= box["resources"][kind].keys(), f"{name} {kind}"


def test_images_are_pinned(manifests: list[Manifest]) -> None:
    for name, template in _pods(manifests):
        for box in template["spec"]["containers"]:
            image, _, tag = box["image"].rpartition(":")
            assert image and "/" not in tag and any(c.isdigit() for c in tag), f"{name}: {box['image']}"


def test_secrets_are_named_and_never_written(manifests: list[Manifest]) -> None:
    about = (FOLDER / "README.md").read_text("utf-8")
    assert all(one["kind"] != "Secret" for one in manifests)
    for name, template in _pods(manifests):
        for box in template["spec"]["containers"]:
            for variable in box.get("env", []):
                words = ("PASS", "SECRET", "TOKEN", "AUTH_STRING", "CONNECTION_URL", "KEY")
                if any(word in variable["name"] for word in words):
                    named = variable["valueFrom"]["secretKeyRef"]["name"]
                    assert f"`{named}`" in about, f"{name}: {named} is not said how to make"
            for source in box.get("envFrom", []):
                assert f"`{source['secretRef']['name']}`" in about
    for one in manifests:
        if one["kind"].startswith("Ray"):
            options = one["spec"].get("rayClusterSpec", one["spec"])["authOptions"]
            assert options == {"mode": "token", "secretName": "ray-token"}


@pytest.mark.parametrize("build", BUILDS[:2])
def test_rays_ports_are_for_ray_and_its_clients(build: str) -> None:
    """By no ingress, no load balancer, no port of a machine; and who may ask a head is listed."""
    manifests = _built(build)
    for one in manifests:
        if one["kind"] == "Ingress":
            assert "ray" not in json.dumps(one["spec"])
            assert (
                one["spec"]["tls"]
                and one["metadata"]["annotations"]["nginx.ingress.kubernetes.io/auth-type"] == "basic"
            )
        if one["kind"] == "Service":
            assert one["spec"].get("type", "ClusterIP") == "ClusterIP"
        if one["kind"] == "RayCluster":
            assert one["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    ray = {"app.kubernetes.io/name": "ray-head"}
    clients = {_who(peer) for rule in _ingress(manifests, ray) for peer in rule["from"] if 8265 in _ports(rule)}
    assert clients == {"prefect-worker", "kuberay-system"}
    anything = {_who(peer) for rule in _ingress(manifests, ray) for peer in rule["from"] if not _ports(rule)}
    assert anything == {"ray-head, ray-worker"}
    for rule in _ingress(manifests, {"app.kubernetes.io/name": "ray-worker"}):
        assert {_who(peer) for peer in rule["from"]} <= {"ray-head, ray-worker", "monitoring"}


@pytest.mark.parametrize("build", BUILDS[:2])
def test_nobody_is_reached_unless_it_is_written(build: str) -> None:
    manifests = _built(build)
    policies = [one for one in manifests if one["kind"] == "NetworkPolicy"]
    everybody = [one["spec"] for one in policies if one["spec"]["podSelector"] == {}]
    (nobody,) = [spec for spec in everybody if "Ingress" in spec["policyTypes"]]
    assert set(nobody["policyTypes"]) == {"Ingress", "Egress"} and "ingress" not in nobody
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], f"{policy['metadata']['name']} lets everybody in"
    for _, template in _pods(manifests):  # and who is selected by a policy's name is there
        labels = template["metadata"]["labels"]
        assert any(_selects(one["spec"]["podSelector"], labels) for one in policies if one["spec"]["podSelector"])
    namespace = next(one for one in manifests if one["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_production_trains_on_machines_that_may_go() -> None:
    (cluster,) = [one for one in _built("overlays/production") if one["kind"] == "RayCluster"]
    (group,) = [one for one in cluster["spec"]["workerGroupSpecs"] if one["groupName"] == "gpu"]
    spec = group["template"]["spec"]
    assert spec["nodeSelector"] == {"moa/spot": "true"} and group["minReplicas"] == 0
    assert {one["key"] for one in spec["tolerations"]} == {"moa/spot", "nvidia.com/gpu"}
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia" not in json.dumps(cluster["spec"]["headGroupSpec"])


def _ingress(manifests: list[Manifest], labels: dict[str, str]) -> Iterator[Manifest]:
    for one in manifests:
        if one["kind"] == "NetworkPolicy" and _selects(one["spec"]["podSelector"], labels):
            yield from one["spec"].get("ingress", [])


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    listed = selector.get("matchExpressions", [])
    return all(labels.get(name) == value for name, value in wanted.items()) and all(
        labels.get(one["key"]) in one["values"] for one in listed
    )


def _who(peer: Manifest) -> str:
    selector = peer.get("podSelector") or peer["namespaceSelector"]
    values = list(selector.get("matchLabels", {}).values())
    values += [", ".join(one["values"]) for one in selector.get("matchExpressions", [])]
    return values[0]


def _ports(rule: Manifest) -> list[int]:
    return [port["port"] for port in rule.get("ports", [])]
