"""schemathesis against the live OpenAPI page of a real server: it finds nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support_schemathesis import OWN, TOKEN
from support_server import SECRET, ApiProcess, api_process

CONFIG = Path(__file__).parent / "schemathesis.toml"
TESTS = Path(__file__).parents[1]


@pytest.fixture
def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiProcess]:
    """A server whose jobs stay queued: another replica, as it seems, has the lease to admit."""
    monkeypatch.setenv("STOPLAB_RATE_PER_S", "0")
    with api_process(home) as running:
        assert running.store.lease("admission", "the-test", 1e6)
        yield running


def test_a_few_examples(api: ApiProcess) -> None:
    told = tried(api, "--phases", "examples,fuzzing", "--max-examples", "3")
    assert requests_in(told) > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_phases(api: ApiProcess) -> None:
    """Examples, every edge of the schema, random requests, and chains of them."""
    told = tried(api, "--max-examples", "40")
    assert requests_in(told) > 10_000


@pytest.mark.slow
def test_many_chains(api: ApiProcess) -> None:
    """What one answer names is asked for next."""
    told = tried(api, "--phases", "stateful", "--max-examples", "400")
    assert re.search(r"API Links: +[1-9]\d+ covered", told)


def test_it_finds_what_is_wrong(api: ApiProcess, tmp_path: Path) -> None:
    """The same call on a page that promises what is not so."""
    promised = {"type": "object", "required": ["no_such_member"]}
    content = {"application/json": {"schema": promised}}
    responses = {"200": {"description": "", "content": content}}
    security = {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    page = {
        "openapi": "3.1.0",
        "info": {"title": "wrong", "version": "1"},
        "components": {"securitySchemes": security},
        "paths": {"/v1/jobs": {"get": {"responses": responses, "security": [{"HTTPBearer": []}]}}},
    }
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(page))
    done = run(api, str(path), "--url", api.url, "--phases", "fuzzing", "--max-examples", "1")
    assert done.returncode == 1, done.stdout
    assert "no_such_member" in done.stdout


def tried(api: ApiProcess, *options: str) -> str:
    """What schemathesis told about the server's own page; it found nothing."""
    done = run(api, f"{api.url}/openapi.json", *options)
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


def run(api: ApiProcess, page: str, *options: str) -> subprocess.CompletedProcess[str]:
    (token,) = api.store.tokens("default")
    command = Path(sys.executable).with_name("schemathesis")
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [command, "--config-file", CONFIG, "run", page, "--checks", "all", "--no-color", *options],
        env={**os.environ, "PYTHONPATH": paths, TOKEN: SECRET, OWN: token.id},
        cwd=api.settings.home,  # it leaves notes of what it found
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def requests_in(told: str) -> int:
    found = re.search(r"(\d+) generated", told)
    assert found, told
    return int(found[1])
