"""The images' own install lines and commands, carried out here: fresh environments, real servers.

They take packages from the index and some minutes each.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from support_api import SPEC
from support_mlflow import free_port
from support_shipping import DOCKER, HOUSE, Dockerfile, lab_postgres
from support_store import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

START_S = 300.0


@pytest.fixture(scope="module")
def secrets() -> Iterator[Path]:
    """A lab's secrets; the databases they name are served on loopback."""
    with lab_postgres() as folder:
        yield folder


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    words = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(HOUSE)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return folder


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, dist: Path) -> Path:
    """What the API's image has at /opt/stoplab."""
    return installed("api", tmp_path_factory.mktemp("api"), dist)


def installed(image: str, folder: Path, dist: Path) -> Path:
    """A new environment in which an image's install lines ran; they end as they would there."""
    venv.create(folder, with_pip=True)
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    for line in Dockerfile.read(DOCKER / f"{image}.Dockerfile").installs():
        here = line.replace("/constraints.txt", str(HOUSE / "constraints.txt"))
        subprocess.run(["bash", "-euc", here.replace("/dist/", f"{dist}/")], env=env, check=True)
    return folder


def environment(image: str, folder: Path, home: Path, **more: str) -> dict[str, str]:
    """The variables that a container has."""
    own = Dockerfile.read(DOCKER / f"{image}.Dockerfile").environment()
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    return {**own, "PATH": path, "HOME": str(home), "STOPLAB_HOME": str(home), **more}


@contextmanager
def server(
    command: Sequence[str], env: Mapping[str, str], health: str, log: Path
) -> Iterator[None]:
    """A server, once its image's probe says that it is well."""
    program = Path(env["PATH"].partition(":")[0]) / command[0]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]], env=env, cwd=log.parent, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip

    def settled() -> bool:
        probe = [sys.executable, DOCKER / "probe.py", health]
        asked = subprocess.run(probe, stderr=subprocess.DEVNULL, check=False)
        return asked.returncode == 0 or process.poll() is not None

    try:
        wait_for(settled, health, START_S)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_the_wheel_brings_the_base_of_the_rayjob(dist: Path) -> None:
    (wheel,) = dist.glob("stoplab-*.whl")
    assert "stoplab_trainers/configs/digits.yaml" in ZipFile(wheel).namelist()


def test_the_api_has_no_torch(api: Path) -> None:
    done = subprocess.run(
        [api / "bin/python", "-c", "import torch"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "ModuleNotFoundError: No module named 'torch'",
    )


def test_the_api_takes_jobs_into_postgres(api: Path, secrets: Path, tmp_path: Path) -> None:
    image = Dockerfile.read(DOCKER / "api.Dockerfile")
    env = environment(
        "api", api, tmp_path,
        STOPLAB_DATABASE_URL="postgresql+psycopg:///?service=stoplab",
        PGSERVICEFILE=str(secrets / "stoplab_db"),
    )  # fmt: skip
    said = [
        subprocess.run(
            [api / "bin/python", "-m", "stoplab_api.bootstrap", secrets / "admin_token"],
            env=env, check=True, capture_output=True, text=True,
        ).stdout.strip()
        for _ in range(2)
    ]  # fmt: skip
    assert said == ["the administrator's token is registered", "the token was known already"]
    port = str(free_port())
    command = [port if word == "8800" else word for word in image.command()]
    url = f"http://127.0.0.1:{port}"
    with (
        server(command, env, f"{url}/livez", tmp_path / "log"),
        httpx.Client(base_url=url, trust_env=False, timeout=30) as http,
    ):
        token = {"Authorization": f"Bearer {(secrets / 'admin_token').read_text()}"}
        body = {"spec": SPEC}
        assert http.post("/v1/jobs", json=body).status_code == 401
        checked = http.post("/v1/jobs?dry_run=true", json=body, headers=token)
        assert checked.status_code == 200, checked.text
        ready = http.get("/readyz").json()["checks"]
        assert ready["database"]["ok"]
        assert http.get("/v1/me", headers=token).json()["role"] == "admin"


def test_mlflow_serves_from_postgres_those_who_know_its_name(
    tmp_path_factory: pytest.TempPathFactory, secrets: Path, tmp_path: Path, dist: Path
) -> None:
    folder = installed("mlflow", tmp_path_factory.mktemp("mlflow"), dist)
    image = Dockerfile.read(DOCKER / "mlflow.Dockerfile")
    port = str(free_port())
    command = [re.sub(r"\b5000\b", port, word) for word in image.command()]
    command[command.index("/var/lib/mlflow/artifacts")] = str(tmp_path / "artifacts")
    env = environment("mlflow", folder, tmp_path, PGSERVICEFILE=str(secrets / "mlflow_db"))
    ask = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    with server(command, env, f"http://127.0.0.1:{port}/health", tmp_path / "log"):
        answers = {
            host: httpx.get(ask, headers={"Host": host}, trust_env=False, timeout=60).status_code
            for host in (f"mlflow:{port}", f"localhost:{port}", "mlflow", f"elsewhere:{port}")
        }
    assert answers == {
        f"mlflow:{port}": 200, f"localhost:{port}": 200, "mlflow": 403, f"elsewhere:{port}": 403,
    }  # fmt: skip


def test_each_has_its_own_database_and_not_the_others(secrets: Path) -> None:
    assert asked(secrets / "mlflow_db", "service=mlflow") == "mlflow|mlflow"
    assert asked(secrets / "stoplab_db", "service=stoplab") == "stoplab|stoplab"
    assert "permission denied" in asked(secrets / "mlflow_db", "service=mlflow dbname=stoplab")


def asked(services: Path, place: str) -> str:
    """Who one is, and where; or why one is not let in."""
    question = "SELECT current_user, current_database()"
    done = subprocess.run(
        ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", question, place],
        env={**os.environ, "PGSERVICEFILE": str(services)},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr
