"""Reading what ships: Dockerfiles, the compose file, manifests as kustomize builds them."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support_mlflow import free_port

HOUSE = Path(__file__).parents[1]
DOCKER = HOUSE / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
SCRIPTS = (
    DOCKER / "make-secrets.sh",
    DOCKER / "k8s/base/init-databases.sh",
    DOCKER / "slurm/stoplab.sbatch",
)


@dataclass(frozen=True)
class Dockerfile:
    """One Dockerfile, as (instruction, rest) in order."""

    lines: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        """Comments dropped, continued lines joined."""
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
        joined = text.replace("\\\n", " ").splitlines()
        words = (line.split(maxsplit=1) for line in joined if line.strip())
        return cls(tuple((first, " ".join(rest.split())) for first, rest in words))

    def all(self, instruction: str) -> list[str]:
        """What stands behind each of these instructions."""
        return [rest for name, rest in self.lines if name == instruction]

    def environment(self) -> dict[str, str]:
        """Every variable that an image sets."""
        pairs = (word.partition("=") for rest in self.all("ENV") for word in shlex.split(rest))
        return {name: value for name, _, value in pairs}

    def command(self) -> list[str]:
        """What a container runs."""
        command: list[str] = json.loads(self.all("CMD")[-1])
        return command

    def installs(self) -> list[str]:
        """The shell lines that install packages, without their mounts."""
        found = (rest for rest in self.all("RUN") if "pip install" in rest)
        return [re.sub(r"--mount=\S+ ", "", rest) for rest in found]

    def sources(self) -> set[str]:
        """What it takes from the build's context."""
        copied = {
            word
            for rest in self.all("COPY")
            for word in shlex.split(rest)[:-1]
            if not word.startswith("--")
        }
        return copied | set(re.findall(r"source=([^,\s]+)", " ".join(self.all("RUN"))))


def compose() -> dict[str, Any]:
    """The compose file, its anchors resolved."""
    data: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return data


def image_of(service: Mapping[str, Any]) -> Dockerfile:
    """The Dockerfile that a service is built from."""
    return Dockerfile.read(HOUSE / service["build"]["dockerfile"])


def make_secrets(folder: Path) -> Path:
    """A lab's secrets, as its operator makes them."""
    subprocess.run([DOCKER / "make-secrets.sh", folder], check=True, capture_output=True)
    return folder


def kustomized(folder: Path, part: str) -> list[dict[str, Any]]:
    """The manifests of ``docker/k8s/PART``, built in a copy that has secrets."""
    copy = folder / "k8s"
    if not copy.exists():
        only = shutil.ignore_patterns("*_password", "*_db", "*_token")
        shutil.copytree(DOCKER / "k8s", copy, ignore=only)
        make_secrets(copy / "secrets")
    built = subprocess.run(
        ["kubectl", "kustomize", copy / part], check=True, capture_output=True, text=True
    )
    return list(yaml.safe_load_all(built.stdout))


def pod_templates(manifest: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each pod template of a manifest, with a name for messages."""
    spec = manifest.get("spec", {})
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    if manifest["kind"] == "RayCluster":
        yield f"{name}/head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}/{group['groupName']}", group["template"]
    elif manifest["kind"] == "RayJob":
        yield name, spec["submitterPodTemplate"]
    elif "template" in spec:
        yield name, spec["template"]


def containers(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A pod's containers, those that run first too."""
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


@contextmanager
def lab_postgres() -> Iterator[Path]:
    """PostgreSQL as its image starts it with our script; the folder of the lab's secrets.

    The service files name it on loopback.
    """
    # Not below pytest's folders, which only the tests' own user may enter.
    with tempfile.TemporaryDirectory(prefix="stoplab-ship-", dir="/tmp") as place:
        folder, data, port = Path(place), Path(place) / "data", free_port()
        secrets = make_secrets(folder / "secrets")
        user = _server_user()
        if user:
            shutil.chown(folder, user["user"])
            secrets.chmod(0o755)  # as in a container, where only its own processes are
        listen = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **user}
        password = f"--pwfile={secrets / 'postgres_password'}"
        auth = ("--auth-local=trust", "--auth-host=scram-sha-256")
        subprocess.run(["initdb", "-U", "postgres", "-D", data, password, *auth], **quiet)
        log = folder / "log"
        control = ["pg_ctl", "-D", data, "-w"]
        subprocess.run([*control, "-l", log, "-o", listen, "start"], **quiet)
        try:
            env = {**os.environ, "PGHOST": place, "PGPORT": str(port), "SECRETS": str(secrets)}
            subprocess.run([DOCKER / "k8s/base/init-databases.sh"], env=env, check=True)
            for path in secrets.glob("*_db"):
                here = f"host=127.0.0.1\nport={port}"
                text = path.read_text().replace("host=postgres\nport=5432", here)
                path.unlink()
                path.write_text(text)
            yield secrets
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


def _server_user() -> dict[str, Any]:
    """Of `subprocess`: who runs the server, which refuses root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_name, "group": nobody.pw_gid, "extra_groups": []}
