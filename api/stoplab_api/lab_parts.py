"""What the local lab is made of: the command, environment and readiness of each of its servers."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from stoplab_platform.paths import Home

HOST = "127.0.0.1"
PREFERRED_PORTS = {"ray": 8265, "mlflow": 5000, "api": 8800}
OBJECT_STORE_BYTES = 256 * 1024**2  # what goes through Ray is small: shards are read from disk
ASK_S = 5.0
# What belongs to one job, or to another lab, and must not reach this one's servers.
FOREIGN = (
    "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_ID", "RAY_TMPDIR",
    "STOPLAB_API_URL", "STOPLAB_ATTEMPT", "STOPLAB_JOB_ID", "STOPLAB_PROJECT", "STOPLAB_TOKEN",
    "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID",
)  # fmt: skip
# The head's, and so that of every job that it starts, a bare `ray job submit` too.
CALM_RAY = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # every print would appear twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for this poll
    "RAY_USAGE_STATS_ENABLED": "0",
}
CALM_MLFLOW = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight further processes, of no use here
}


@dataclass(frozen=True)
class Place:
    """Where the parts of one lab listen, and whose home it is."""

    home: Home
    ports: Mapping[str, int]
    """Of `ray` (its dashboard), `mlflow` and `api`."""

    def url(self, part: str) -> str:
        """Address of a part."""
        return f"http://{HOST}:{self.ports[part]}"

    def mark(self, part: str) -> str:
        """What every process of a part carries."""
        return f"{part}@{self.home.root}"

    @property
    def ray_folder(self) -> Path:
        """Ray's temporary folder: a short path, because socket names end at 107 bytes."""
        name = hashlib.sha256(str(self.home.root).encode()).hexdigest()[:8]
        return Path("/tmp") / f"stoplab-{name}"


@dataclass(frozen=True)
class Part:
    """One server."""

    command: Callable[[Place], list[str]]
    extra: Callable[[Place], dict[str, str]]
    """Environment beside what all parts share."""
    is_ready: Callable[[Place], bool]

    def environment(self, place: Place) -> dict[str, str]:
        """The whole environment of its process."""
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        return {**inherited, **_shared(place), **self.extra(place)}


def shell_exports(place: Place) -> dict[str, str]:
    """What a shell needs so that `ray job submit`, notebooks and `stoplab` find this lab."""
    return {
        "STOPLAB_HOME": str(place.home.root),
        "STOPLAB_API_URL": place.url("api"),
        "MLFLOW_TRACKING_URI": place.url("mlflow"),
        "RAY_ADDRESS": place.url("ray"),
        **ray_auth(place.home),
    }


def ray_auth(home: Home) -> dict[str, str]:
    """How Ray's clients and servers know each other."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home.ray_token_file)}


def _shared(place: Place) -> dict[str, str]:
    """The interpreter's own scripts come first, so that a job finds the lab's `python`."""
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "STOPLAB_HOME": str(place.home.root),
        **ray_auth(place.home),
    }


def _ray_command(place: Place) -> list[str]:
    """Ports of 0 are drawn free by the process that listens, so they clash with nothing."""
    drawn = (
        "port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
        "runtime-env-agent-port", "node-manager-port", "object-manager-port",
        "min-worker-port", "max-worker-port",
    )  # fmt: skip
    return [
        sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--dashboard-host={HOST}", f"--dashboard-port={place.ports['ray']}",
        f"--ray-client-server-port={place.ports['ray_client']}",
        *(f"--{name}=0" for name in drawn),
        f"--num-cpus={os.cpu_count() or 1}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={place.ray_folder}",
        "--disable-usage-stats", "--no-monitor", "--log-style=record", "--log-color=false",
    ]  # fmt: skip


def _mlflow_command(place: Place) -> list[str]:
    return [
        sys.executable, "-P", "-m", "mlflow", "server",
        "--backend-store-uri", f"sqlite:///{place.home.mlflow_database}",
        # Files go straight to their folder, so that they open without this server as well.
        "--no-serve-artifacts", "--default-artifact-root", str(place.home.mlflow_artifacts),
        "--host", HOST, "--port", str(place.ports["mlflow"]), "--workers", "1",
        "--allowed-hosts", "localhost:*,127.0.0.1:*",
    ]  # fmt: skip


def _api_command(place: Place) -> list[str]:
    port = str(place.ports["api"])
    return [sys.executable, "-P", "-m", "stoplab_api.app", "--host", HOST, "--port", port]


def _ray_is_ready(place: Place) -> bool:
    """Ray Jobs answers, and the head has joined its own cluster."""
    try:
        token = {"Authorization": f"Bearer {place.home.ray_token_file.read_text().strip()}"}
    except OSError:
        return False
    jobs = _ask(f"{place.url('ray')}/api/jobs/", token)
    nodes = _ask(f"{place.url('ray')}/nodes?view=summary", token)
    if jobs is None or nodes is None:
        return False
    return bool(nodes.json()["data"]["summary"])


def _ask(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response | None:
    """The answer, if it is a good one."""
    try:
        answer = _http().get(url, headers=headers)
    except httpx.TransportError:
        return None
    return answer if answer.is_success else None


@functools.cache
def _http() -> httpx.Client:
    """One for all questions: making one costs as much as ten of them."""
    return httpx.Client(timeout=ASK_S, trust_env=False)


PARTS: dict[str, Part] = {
    "ray": Part(
        _ray_command,
        lambda place: {**CALM_RAY, "MLFLOW_TRACKING_URI": place.url("mlflow")},
        _ray_is_ready,
    ),
    "mlflow": Part(
        _mlflow_command,
        lambda _: CALM_MLFLOW,
        lambda place: _ask(f"{place.url('mlflow')}/health") is not None,
    ),
    "api": Part(
        _api_command,
        lambda place: {
            "MLFLOW_TRACKING_URI": place.url("mlflow"),
            "RAY_ADDRESS": place.url("ray"),
        },
        lambda place: _ask(f"{place.url('api')}/livez") is not None,
    ),
}
"""The servers, in the order in which they are started."""
