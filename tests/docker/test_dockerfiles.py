"""What can be said of the images without an engine that builds them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from support_shipping import DOCKER, DOCKERFILES, HOUSE, SCRIPTS, Dockerfile, compose

TOOLS = Path(sys.executable).parent


def named(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_the_linter_finds_nothing(path: Path) -> None:
    done = subprocess.run([TOOLS / "hadolint", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_the_shell_scripts_are_clean(path: Path) -> None:
    done = subprocess.run([TOOLS / "shellcheck", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_images_run_as_a_user_of_their_own(path: Path) -> None:
    (user,) = Dockerfile.read(path).all("USER")
    after = [name for name, _ in Dockerfile.read(path).lines]
    # By number: only so can Kubernetes tell that it is not root.
    assert user == "10001"
    assert set(after[after.index("USER") :]) & {"RUN", "COPY", "ADD"} == set()


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_no_secret_lies_in_a_layer(path: Path) -> None:
    image = Dockerfile.read(path)
    given = {*image.environment(), *(rest.partition("=")[0] for rest in image.all("ARG"))}
    secret = re.compile(r"TOKEN|PASSWORD|SECRET|_KEY", re.IGNORECASE)
    assert [n for n in given if secret.search(n) and not n.endswith("_PATH")] == []
    assert image.all("ADD") == []
    assert all("secrets" not in source for source in image.sources())


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_bases_are_pinned(path: Path) -> None:
    image = Dockerfile.read(path)
    arguments = dict(rest.split("=", 1) for rest in image.all("ARG"))
    for base in image.all("FROM"):
        name = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base)
        assert re.search(r":\d+\.\d+\.?\d*", name), name


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_the_builder_is_sent_what_an_image_takes_and_no_more(path: Path) -> None:
    sources = Dockerfile.read(path).sources()
    # The wheel is built first; the folder may not be there yet.
    assert [s for s in sources - {"dist"} if not (HOUSE / s).exists()] == []
    lines = (HOUSE / ".dockerignore").read_text().splitlines()
    first, *let_in = (line for line in lines if not line.startswith("#"))
    assert first == "*"
    assert sources <= {"dist", *(line.removeprefix("!") for line in let_in)}


@pytest.mark.parametrize(
    "path",
    [".git/config", ".stoplab/tokens/local", ".venv/bin/python", "docker/secrets/ray_token",
     "docker/k8s/secrets/admin_token", "docker/.env", "platform/stoplab_platform/__init__.py"],
)  # fmt: skip
def test_the_builder_never_sees(path: str) -> None:
    lines = (HOUSE / ".dockerignore").read_text().splitlines()
    assert not any(fnmatch(path, line[1:]) for line in lines if line.startswith("!"))


def test_secrets_are_never_committed() -> None:
    made = ("docker/secrets/ray_token", "docker/k8s/secrets/admin_token")
    done = subprocess.run(
        ["git", "check-ignore", *made], cwd=HOUSE, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == list(made)


def test_the_api_and_the_trainers_have_their_interpreter_at_the_same_place() -> None:
    """The API names the interpreter that a job starts with: its own."""
    api, trainer = (Dockerfile.read(DOCKER / f"{n}.Dockerfile") for n in ("api", "trainer"))
    assert api.environment()["VIRTUAL_ENV"] == trainer.environment()["VIRTUAL_ENV"]
    assert api.environment()["STOPLAB_HOME"] == trainer.environment()["STOPLAB_HOME"]


def test_images_are_named_after_the_version() -> None:
    version = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]["version"]
    ours = {
        service["image"]
        for service in compose()["services"].values()
        if service["image"].startswith("stoplab-")
    }
    assert ours == {f"stoplab-{part}:{version}" for part in ("api", "mlflow", "trainer")}


READY = b'{"checks": {"database": {"ok": true, "message": null}, "runner": {"ok": true}}}'
UNREADY = (
    b'{"checks": {"database": {"ok": true, "message": null},'
    b' "runner": {"ok": false, "message": "the cluster does not answer"}}}'
)


class Health(BaseHTTPRequestHandler):
    """Answers as the API's health pages do."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/unready" else 200)
        self.end_headers()
        self.wfile.write(UNREADY if self.path == "/unready" else READY)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["/ready"], 0, ""),
        (["/unready"], 1, "503"),
        (["/unready", "database"], 0, ""),
        (["/unready", "database", "runner"], 1, "runner: the cluster does not answer"),
    ],
)
def test_the_probe_says_whether_a_server_is_well(
    server: str, words: list[str], code: int, said: str
) -> None:
    assert probe(server + words[0], *words[1:])[0] == code
    assert said in probe(server + words[0], *words[1:])[1]


def test_the_probe_fails_where_nobody_listens() -> None:
    code, said = probe("http://127.0.0.1:1/livez")
    assert (code, "Connection refused" in said) == (1, True)


def probe(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, DOCKER / "probe.py", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr
