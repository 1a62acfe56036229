"""What all tests share: a home of their own, no network, one thread, checked shapes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from jaxtyping import install_import_hook


class HeavyFirst(MetaPathFinder):
    """Imports what the trainers stand on before the first of them.

    What is imported while a checked module runs has bytecode of its own, so torch would be
    compiled anew.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Find nothing, ever."""
        if fullname.startswith("stoplab_trainers."):
            sys.meta_path.remove(self)
            for name in ("torch", "timm", "ray", "matplotlib.figure", "sklearn.preprocessing"):
                import_module(name)


os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
install_import_hook("stoplab_trainers", "beartype.beartype")
sys.meta_path.insert(0, HeavyFirst())
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So starts what a script runs in the background, and what it starts would never hear of Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("support_invariants")
pytest_plugins = ("support_databases",)

GOLDEN = Path(__file__).parent / "golden"
OUTSIDE = (
    "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH",
    "STOPLAB_API_URL", "STOPLAB_ATTEMPT", "STOPLAB_CACHE_BYTES", "STOPLAB_CACHE_DIR",
    "STOPLAB_DATA_ROOTS", "STOPLAB_DATA_SCHEMES",
    "STOPLAB_HOME", "STOPLAB_JOB_ID", "STOPLAB_LOG_FORMAT", "STOPLAB_LOG_LEVEL",
    "STOPLAB_PROJECT", "STOPLAB_TOKEN",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--golden` and `--no-postgres`."""
    parser.addoption("--golden", action="store_true", help="write the golden files anew")
    parser.addoption("--no-postgres", action="store_true", help="leave PostgreSQL out")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compares a value with `tests/golden/NAME.json`; with `--golden` it is written there."""

    def check(name: str, value: Any) -> None:
        path = GOLDEN / f"{name}.json"
        if request.config.getoption("--golden"):
            path.write_text(json.dumps(value, indent=1) + "\n")
        assert value == json.loads(path.read_text()), "renew it with `make golden`"

    return check


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> Path:
    """A lab's home of the test's own; only what can be made again is shared between tests."""
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "home"
    path.mkdir()
    (path / "cache").symlink_to(shared_cache)
    monkeypatch.setenv("STOPLAB_HOME", str(path))
    return path


@pytest.fixture(autouse=True)
def mlflow_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path, mlflow_tables: Path
) -> str:
    """An empty MLflow store of the test's own, which `MLFLOW_TRACKING_URI` names."""
    shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="module")
def s3() -> Iterator[int]:
    """The port of a real S3 server, with one empty bucket."""
    from support_s3 import s3_server

    with s3_server() as port:
        yield port


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home's cache: embedded sets and indexes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def mlflow_tables(request: pytest.FixtureRequest) -> Path:
    """A store with MLflow's tables: making them takes 10 s, so one is kept between sessions."""
    folder = request.config.cache.mkdir("mlflow")
    path = folder / f"{version('mlflow')}.db"
    with FileLock(folder / "lock"):
        if not path.exists():
            from stoplab_platform.tracking import client

            draft = folder / "draft.db"
            draft.unlink(missing_ok=True)  # by a session that was killed
            client(f"sqlite:///{draft}")
            draft.replace(path)
    return path


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Any:
    """TCP leaves this machine in no test. (UDP: Ray asks the kernel for its own address so.)"""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(self: socket.socket, address: Any) -> None:
        _refuse_the_world(self, address)
        connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        _refuse_the_world(self, address)
        return connect_ex(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    patch.setattr(socket.socket, "connect_ex", guarded_ex)
    yield
    patch.undo()


def _refuse_the_world(sock: socket.socket, address: Any) -> None:
    inside = sock.family == socket.AF_UNIX or sock.type & socket.SOCK_DGRAM
    if not inside and address[0] != "localhost" and not ip_address(address[0]).is_loopback:
        raise PermissionError(f"a test reached out to {address}")
