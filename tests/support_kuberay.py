"""What KubeRay's resources may hold, by hand from its API reference (v1.7, `ray.io/v1`).

No package index carries its schemas. This is the part that our manifests may use: a field with
another name is refused, what lies in a pod template is checked by Kubernetes' own schema.
"""

from __future__ import annotations

from typing import Any


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=ANY,
        spec=spec,
    )


ANY = {"type": "object"}
TEXT = {"type": "string"}
TRUTH = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
TEMPLATE = _object(("spec",), metadata=ANY, spec=ANY)

AUTOSCALER = _object(
    version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=COUNT,
    resources=ANY,
    securityContext=ANY,
    image=TEXT,
    imagePullPolicy=TEXT,
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
HEAD = _object(
    ("rayStartParams", "template"),
    rayStartParams=TEXTS,
    template=TEMPLATE,
    serviceType=TEXT,
    headService=ANY,
    enableIngress=TRUTH,
)
WORKERS = _object(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
RAY_CLUSTER = _resource(
    "RayCluster",
    _object(
        ("headGroupSpec",),
        rayVersion=TEXT,
        authOptions=_object(("mode",), mode={"enum": ["disabled", "token"]}, secretName=TEXT),
        enableInTreeAutoscaling=TRUTH,
        autoscalerOptions=AUTOSCALER,
        headGroupSpec=HEAD,
        workerGroupSpecs={"type": "array", "items": WORKERS},
        suspend=TRUTH,
    ),
)
RAY_JOB = _resource(
    "RayJob",
    _object(
        ("entrypoint",),
        entrypoint=TEXT,
        clusterSelector=TEXTS,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterPodTemplate=TEMPLATE,
        submitterConfig=_object(backoffLimit=COUNT),
        metadata=TEXTS,
        jobId=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        activeDeadlineSeconds=COUNT,
        suspend=TRUTH,
    ),
)
