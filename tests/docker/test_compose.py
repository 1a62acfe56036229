"""The lab on one machine: what its compose file promises."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from stoplab_platform.settings import Settings
from support_shipping import DOCKER, Dockerfile, compose, image_of, make_secrets

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
SERVERS = {name: service for name, service in SERVICES.items() if name != "bootstrap"}
# The package that carries the schema of the compose specification as published.
SCHEMA_PACKAGE = "dclint@3.1.0"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="the schema comes by npm")
def test_it_fits_the_schema_of_the_compose_specification(tmp_path: Path) -> None:
    subprocess.run(
        ["npm", "pack", "--silent", SCHEMA_PACKAGE], cwd=tmp_path, check=True, capture_output=True
    )
    (packed,) = tmp_path.glob("*.tgz")
    with tarfile.open(packed) as archive:
        member = archive.extractfile("package/schemas/compose.schema.json")
        assert member is not None
        schema = Draft7Validator(json.load(member))
    assert [f"{e.json_path}: {e.message}" for e in schema.iter_errors(compose())] == []
    broken = compose()
    broken["services"]["api"]["restrat"] = "always"
    assert [error.json_path for error in schema.iter_errors(broken)] == ["$.services.api"]


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    asked = ["docker", "compose", "version"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="there is no `docker compose`")
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_docker_compose_reads_it(profile: str) -> None:
    command = ["docker", "compose", "--file", DOCKER / "compose.yaml", "--profile", profile]
    done = subprocess.run([*command, "config", "--quiet"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc"}
    user = service.get("user") or image_of(service).all("USER")[-1]
    assert not user.startswith(("0", "root"))


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_comes_back_and_says_how_it_is(name: str) -> None:
    service = SERVERS[name]
    assert service["restart"] == "unless-stopped"
    own = service.get("healthcheck", {}).get("test")
    assert own or image_of(service).all("HEALTHCHECK")


def test_what_depends_on_a_server_waits_until_it_is_well() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            once = name == "bootstrap"
            wanted = "service_completed_successfully" if once else "service_healthy"
            assert how["condition"] == wanted, name


def test_only_the_api_and_mlflow_are_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8800:8800"], "mlflow": ["127.0.0.1:5000:5000"]}


def test_a_worker_is_chosen_by_its_profile() -> None:
    profiles = {name: s["profiles"] for name, s in SERVICES.items() if "profiles" in s}
    assert profiles == {"ray-worker": ["cpu"], "ray-worker-gpu": ["gpu"]}
    (device,) = SERVICES["ray-worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_jobs_are_seen_by_the_api_and_by_every_node_of_ray() -> None:
    place = "jobs:/var/lib/stoplab/jobs"
    for volume in (place, "${STOPLAB_DATA:-./data}:/data:ro"):
        seen = {name for name, service in SERVICES.items() if volume in service.get("volumes", ())}
        assert seen == {"api", "ray-head", "ray-worker", "ray-worker-gpu"}
    home = image_of(SERVICES["api"]).environment()["STOPLAB_HOME"]
    assert place.endswith(f":{home}/jobs")


def test_volumes_cover_folders_that_their_user_owns() -> None:
    """A new volume takes its owner from the image's folder."""
    for service in SERVERS.values():
        if "build" not in service:
            continue
        made = " ".join(image_of(service).all("RUN"))
        for volume in service.get("volumes", ()):
            if not volume.endswith(":ro"):
                assert volume.rpartition(":")[2] in made.split(), volume


def test_what_ray_knows_of_its_jobs_outlives_the_head() -> None:
    head = SERVICES["ray-head"]
    assert head["environment"]["RAY_gcs_storage"] == "rocksdb"
    (volume,) = (v for v in head["volumes"] if v.startswith("ray:"))
    assert head["environment"]["RAY_gcs_storage_path"].startswith(volume.partition(":")[2])


def test_ray_waits_for_room_as_long_as_the_lab_does(home: Path) -> None:
    image = image_of(SERVICES["ray-head"]).environment()
    waits_s = float(image["RAY_JOB_START_TIMEOUT_SECONDS"])
    assert waits_s >= Settings(home=home).room_hours * 3600


class TestSecrets:
    def test_none_is_in_the_file(self) -> None:
        for service in SERVICES.values():
            for name, value in service.get("environment", {}).items():
                assert not re.search("PASSWORD|TOKEN|SECRET", name) or name.endswith("_FILE")
                assert not re.search(r"://[^/\s]*:[^/\s]*@", str(value)), name

    def test_each_comes_from_a_file_that_the_script_makes(self, tmp_path: Path) -> None:
        declared = compose()["secrets"]
        made = {path.name for path in make_secrets(tmp_path / "secrets").iterdir()}
        assert {entry["file"] for entry in declared.values()} == {f"./secrets/{n}" for n in made}
        assert set(declared) == made

    def test_who_has_which(self) -> None:
        who = {name: set(s["secrets"]) for name, s in SERVICES.items() if "secrets" in s}
        ray = {"ray_token"}
        assert who == {
            "postgres": {"postgres_password", "stoplab_db", "mlflow_db"},
            "bootstrap": {"stoplab_db", "admin_token"},
            "mlflow": {"mlflow_db"},
            "api": {"stoplab_db", "ray_token"},
            "ray-head": ray, "ray-worker": ray, "ray-worker-gpu": ray,
        }  # fmt: skip

    def test_made_once_closed_and_different(self, tmp_path: Path) -> None:
        folder = make_secrets(tmp_path / "secrets")
        before = {path.name: path.read_text() for path in folder.iterdir()}
        make_secrets(folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == before
        assert len(set(before.values())) == len(before) == 5
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        # Containers of other users read them.
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}


def test_mlflow_lets_in_every_name_it_is_called_by_with_its_port() -> None:
    """Its host check answers 403 to others."""
    allowed = _option(image_of(SERVICES["mlflow"]), "--allowed-hosts").split(",")
    called = {
        service["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
        for service in SERVICES.values()
        if "MLFLOW_TRACKING_URI" in service.get("environment", {})
    }
    address, published, _ = SERVICES["mlflow"]["ports"][0].split(":")
    assert called == {"mlflow:5000"}
    assert called | {f"{address}:{published}", f"localhost:{published}"} <= set(allowed)


def test_databases_are_named_by_service_files() -> None:
    """So that no password is in a URL, an environment or a list of processes."""
    for name, url in (
        ("stoplab", SERVICES["api"]["environment"]["STOPLAB_DATABASE_URL"]),
        ("mlflow", _option(image_of(SERVICES["mlflow"]), "--backend-store-uri")),
    ):
        assert url == f"postgresql+psycopg:///?service={name}"
    files: Mapping[str, str] = {
        name: SERVICES[name]["environment"]["PGSERVICEFILE"] for name in ("api", "mlflow")
    }
    assert files == {"api": "/run/secrets/stoplab_db", "mlflow": "/run/secrets/mlflow_db"}


def _option(image: Dockerfile, name: str) -> str:
    command = image.command()
    return command[command.index(name) + 1]
