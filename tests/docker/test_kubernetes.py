"""The Kubernetes manifests, as kustomize builds them."""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from stoplab_platform.specs import SweepSpec, load_spec
from support_kuberay import RAY_CLUSTER, RAY_JOB
from support_shipping import HOUSE, containers, kustomized, pod_templates

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kustomize is kubectl's")

VERSION = "1.32"
SCHEMAS = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}
Manifests = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["overlays/cpu", "overlays/gpu"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """A whole lab's manifests."""
    return kustomized(tmp_path_factory.mktemp("lab"), request.param)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """The example of a RayJob."""
    return kustomized(tmp_path_factory.mktemp("job"), "rayjob")


@pytest.fixture
def everything(lab: Manifests, sweep: Manifests) -> Manifests:
    return [*lab, *sweep]


def test_manifests_fit_kubernetes_own_schemas(everything: Manifests) -> None:
    for manifest in everything:
        if manifest["kind"] not in SCHEMAS:
            kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_rays_manifests_fit_what_we_know_of_kuberay(everything: Manifests) -> None:
    """Field names by hand (no package carries the schemas); pods by Kubernetes' own schema."""
    for manifest in everything:
        if (schema := SCHEMAS.get(manifest["kind"])) is not None:
            errors = Draft202012Validator(schema).iter_errors(manifest)
            assert [f"{error.json_path}: {error.message}" for error in errors] == []
        for name, template in pod_templates(manifest):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
            pod["metadata"] = {"name": "x", **template.get("metadata", {})}
            kubernetes_validate.validate(pod, VERSION, strict=True), name


def test_a_slip_would_be_found(lab: Manifests) -> None:
    deployment, ray = named(lab, "Deployment", "api"), named(lab, "RayCluster", "ray")
    deployment["spec"]["replcas"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSION, strict=True)
    del deployment["spec"]["replcas"]
    ray["spec"]["enableInTreeAutoscalling"] = True
    assert not Draft202012Validator(RAY_CLUSTER).is_valid(ray)
    del ray["spec"]["enableInTreeAutoscalling"]


def test_pods_fit_the_restricted_standard(everything: Manifests) -> None:
    for name, template in templates(everything):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(template):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert {"requests", "limits"} <= container["resources"].keys(), name


def test_only_rays_head_speaks_with_the_cluster(everything: Manifests) -> None:
    """Its autoscaler does."""
    mounted = {
        name
        for name, template in templates(everything)
        if template["spec"].get("automountServiceAccountToken", True)
    }
    assert mounted == {"RayCluster/ray/head"}


def test_what_is_named_exists(everything: Manifests) -> None:
    have = {(m["kind"], m["metadata"]["name"]) for m in everything}
    wanted = {want for _, template in templates(everything) for want in references(template)}
    ray = named(everything, "RayCluster", "ray")["spec"]
    wanted.add(("Secret", ray["authOptions"]["secretName"]))
    assert wanted - have == set()
    assert {m["metadata"].get("namespace") for m in everything if m["kind"] != "Namespace"} == {
        "stoplab"
    }


def test_secrets_hold_the_keys_that_pods_read(lab: Manifests) -> None:
    keys = {m["metadata"]["name"]: set(m["data"]) for m in lab if m["kind"] == "Secret"}
    assert keys == {
        "postgres": {"postgres_password", "stoplab_db", "mlflow_db"},
        "stoplab-db": {"stoplab_db"},
        "mlflow-db": {"mlflow_db"},
        "ray-token": {"auth_token"},
        "admin-token": {"admin_token"},
    }
    service = next(m for m in lab if m["metadata"]["name"] == "stoplab-db")["data"]["stoplab_db"]
    assert b"host=postgres\n" in base64.b64decode(service)


def test_services_find_their_pods(lab: Manifests) -> None:
    labels = {name: t.get("metadata", {}).get("labels", {}) for name, t in templates(lab)}
    for service in (m for m in lab if m["kind"] == "Service"):
        selector = service["spec"]["selector"]
        assert [n for n, own in labels.items() if selector.items() <= own.items()], service


def test_images_have_one_version(everything: Manifests) -> None:
    images = {c["image"] for _, template in templates(everything) for c in containers(template)}
    assert images == {
        "postgres:17.10-bookworm",
        *(f"registry.example.org/stoplab/{part}:0.1.0" for part in ("api", "mlflow", "trainer")),
    }
    pins = (HOUSE / "constraints.txt").read_text().splitlines()
    ray = named(everything, "RayCluster", "ray")["spec"]["rayVersion"]
    assert f"ray=={ray}" in pins


def test_the_rayjob_runs_a_sweep(sweep: Manifests, tmp_path: Path) -> None:
    """Its script, cut into words as KubeRay does, with the spec printed and not run."""
    shell, flag, script = shlex.split(named(sweep, "RayJob", "noise")["spec"]["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    lines = script.replace("exec python -m stoplab_sweeps.main", "cat")
    assert lines != script
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    env = {**os.environ, "PATH": path, "TMPDIR": str(tmp_path)}
    done = subprocess.run([shell, flag, lines], env=env, check=True, capture_output=True, text=True)
    (tmp_path / "spec.yaml").write_text(done.stdout)
    assert isinstance(load_spec(tmp_path / "spec.yaml"), SweepSpec)


class TestApi:
    def test_two_of_them_of_which_one_always_stays(self, lab: Manifests) -> None:
        spec = named(lab, "Deployment", "api")["spec"]
        assert spec["replicas"] == 2
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        budget = named(lab, "PodDisruptionBudget", "api")["spec"]
        assert budget["minAvailable"] == 1
        assert budget["selector"] == spec["selector"]

    def test_its_health_is_asked_from_inside(self, lab: Manifests) -> None:
        """The health pages need a token but from loopback, and the kubelet is not there."""
        (api,) = named(lab, "Deployment", "api")["spec"]["template"]["spec"]["containers"]
        asked = {kind: api[f"{kind}Probe"]["exec"]["command"] for kind in ("liveness", "readiness")}
        assert asked == {
            "liveness": ["probe", "http://127.0.0.1:8800/livez"],
            "readiness": ["probe", "http://127.0.0.1:8800/readyz", "database", "reconciler"],
        }

    def test_it_is_told_how_far_ray_can_grow(self, lab: Manifests) -> None:
        (api,) = named(lab, "Deployment", "api")["spec"]["template"]["spec"]["containers"]
        env = {entry["name"]: entry["value"] for entry in api["env"]}
        most = [
            (group["maxReplicas"], containers(group["template"])[0]["resources"]["limits"])
            for group in named(lab, "RayCluster", "ray")["spec"]["workerGroupSpecs"]
        ]
        assert int(env["STOPLAB_CAPACITY_CPUS"]) == sum(n * int(has["cpu"]) for n, has in most)
        assert int(env["STOPLAB_CAPACITY_GPUS"]) == sum(
            n * int(has.get("nvidia.com/gpu", 0)) for n, has in most
        )


def test_jobs_are_seen_by_the_api_and_by_every_node_of_ray(lab: Manifests) -> None:
    ray = {n for n, _ in templates(lab) if n.startswith("RayCluster")}
    for name, mount in (
        ("jobs", {"name": "jobs", "mountPath": "/var/lib/stoplab/jobs"}),
        ("data", {"name": "data", "mountPath": "/data", "readOnly": True}),
    ):
        claim = named(lab, "PersistentVolumeClaim", name)["spec"]
        assert claim["accessModes"] == ["ReadWriteMany"]
        seen = {n for n, t in templates(lab) if mount in t["spec"]["containers"][0]["volumeMounts"]}
        assert seen == {"Deployment/api", *ray}


def test_mlflow_lets_in_every_name_it_is_called_by_with_its_port(everything: Manifests) -> None:
    (mlflow,) = named(everything, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    allowed = next(a for a in mlflow["args"] if a.startswith("--allowed-hosts=")).split("=")[1]
    called = {
        entry["value"].removeprefix("http://")
        for _, template in templates(everything)
        for container in containers(template)
        for entry in container.get("env", ())
        if entry["name"] == "MLFLOW_TRACKING_URI"
    }
    assert called == {"mlflow:5000"}
    assert {*called, "127.0.0.1:5000"} <= set(allowed.split(","))


class TestNetwork:
    def test_nothing_is_let_through_that_is_not_named(self, lab: Manifests) -> None:
        spec = named(lab, "NetworkPolicy", "nothing")["spec"]
        assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def test_who_may_speak_to_whom(self, lab: Manifests) -> None:
        policies = [m["spec"] for m in lab if m["kind"] == "NetworkPolicy"]
        let_in = {
            (subject(policy), "|".join(sorted(peer_names(rule.get("from", ())))), ports(rule))
            for policy in policies
            for rule in policy.get("ingress", ())
        }
        assert let_in == {
            ("api", "ingress-nginx/*", "8800"),
            ("postgres", "api|mlflow", "5432"),
            ("mlflow", "api|ray", "5000"),
            ("ray", "ray", "*"),
            ("ray-head", "api|kuberay-system/kuberay-operator|ray-submitter", "8265"),
        }

    def test_who_is_let_in_is_let_out(self, lab: Manifests) -> None:
        """Both ends must agree."""
        policies = [m["spec"] for m in lab if m["kind"] == "NetworkPolicy"]
        let_out = {
            (subject(policy), peer, ports(rule))
            for policy in policies
            for rule in policy.get("egress", ())
            for peer in peer_names(rule.get("to", ({},)))
        }
        assert let_out == {
            ("*", "kube-system/*", "53"),
            ("api", "postgres", "5432"), ("api", "mlflow", "5000"), ("api", "ray-head", "8265"),
            ("mlflow", "postgres", "5432"),
            ("ray", "ray", "*"), ("ray", "mlflow", "5000"),
            ("ray-head", "*", "443+6443"), ("ray-submitter", "ray-head", "8265"),
        }  # fmt: skip


def named(manifests: Manifests, kind: str, name: str) -> dict[str, Any]:
    (found,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


def templates(manifests: Manifests) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests:
        yield from pod_templates(manifest)


def references(template: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and name of what a pod reads."""
    for volume in template["spec"].get("volumes", ()):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        for source in volume.get("projected", {}).get("sources", ()):
            yield "Secret", source["secret"]["name"]
    for container in containers(template):
        for entry in container.get("env", ()):
            if "valueFrom" in entry:
                yield "Secret", entry["valueFrom"]["secretKeyRef"]["name"]


def subject(policy: Mapping[str, Any]) -> str:
    return pod_name(policy["podSelector"])


def pod_name(selector: Mapping[str, Any]) -> str:
    """Our short name of the pods that a selector means."""
    labels = selector.get("matchLabels", {})
    if "ray.io/cluster" in labels:
        return "ray-head" if labels.get("ray.io/node-type") == "head" else "ray"
    return str(labels.get("app.kubernetes.io/name", "*"))


def peer_names(peers: Any) -> Iterator[str]:
    for peer in peers:
        name = pod_name(peer.get("podSelector", {}))
        if "namespaceSelector" in peer:
            space = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            name = f"{space}/{name}"
        yield name


def ports(rule: Mapping[str, Any]) -> str:
    return "+".join(sorted({str(entry["port"]) for entry in rule.get("ports", ())})) or "*"
