"""The servers that the environment, or the home's lab, names: API, Ray and MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

import httpx

from stoplab_api import local
from stoplab_api.doctor.finding import Finding, clock
from stoplab_api.transport import is_loopback
from stoplab_platform.settings import Settings

ASK_S = 5.0
HTTP = ("http://", "https://")


def services(settings: Settings) -> Iterator[Finding]:
    """Each server that is named; a lab's part that is dead was told of already."""
    home = settings.folders
    lab = local.find(home)
    alive = {} if lab is None else {
        part: lab.place.url(part) for part in ("api", "ray", "mlflow") if lab.is_alive(part)
    }  # fmt: skip
    if url := settings.api_url or alive.get("api"):
        yield from api(url, *api_token(settings))
    if url := settings.ray_address or alive.get("ray"):
        yield from ray(url, settings.ray_auth_token_path or home.ray_token_file)
    if url := settings.mlflow_tracking_uri or alive.get("mlflow"):
        yield from mlflow(url)


def api_token(settings: Settings) -> tuple[str | None, str]:
    """The token that clients send, and where it is from."""
    path = settings.folders.token_file
    if settings.token is not None:
        return settings.token, "STOPLAB_TOKEN"
    return _secret(path), str(path)


def api(url: str, token: str | None, source: str) -> Iterator[Finding]:
    """Answers, takes the token, is ready, its clock."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = _ask(f"{url}/v1/me", headers)
    if isinstance(answer, str):
        cure = "`stoplab up` starts the local one; else see STOPLAB_API_URL and its server's log"
        yield Finding("api", False, f"{url}: {answer}", cure)
        return
    kind = answer.headers.get("Content-Type", "")
    if answer.status_code not in (200, 401, 503) or "json" not in kind:
        cure = "another server listens there: see STOPLAB_API_URL"
        yield Finding("api", False, f"{url} answers {answer.status_code}, not as stoplab", cure)
        return
    yield _ready(url, headers)
    yield _api_token(answer, token, source)
    yield from _clock_of("api", answer)


def ray(url: str, token_file: Path) -> Iterator[Finding]:
    """The dashboard answers, takes the token, and is of our version."""
    if not url.startswith(HTTP):
        detail = f"RAY_ADDRESS is {url}, no dashboard's (http://…): the API runs jobs without Ray"
        yield Finding("ray", True, detail)
        return
    token = _secret(token_file)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = _ask(f"{url.rstrip('/')}/api/version", headers)
    if isinstance(answer, str):
        yield Finding("ray", False, f"{url}: {answer}", "start Ray, or see RAY_ADDRESS")
    elif answer.status_code in (401, 403):
        cure = f"Ray runs with another token than {token_file}; set RAY_AUTH_TOKEN_PATH to its own"
        yield Finding("ray", False, f"{url} does not take the token", cure)
    else:
        yield _version("ray", url, str(_member(answer, "ray_version")))


def mlflow(url: str) -> Iterator[Finding]:
    """Answers, to the name that it is called by, and is of our version."""
    if not url.startswith(HTTP):
        yield Finding("mlflow", True, f"{url.partition('://')[0]}, no server")
        return
    base = url.rstrip("/")
    told = _ask(f"{base}/version")
    if isinstance(told, str) or not told.is_success:
        why = told if isinstance(told, str) else f"answers {told.status_code}"
        cure = "start it (`stoplab up`, `mlflow server`), or see MLFLOW_TRACKING_URI"
        yield Finding("mlflow", False, f"{url}: {why}", cure)
        return
    # Pages about its health are open to every name.
    used = _ask(f"{base}/api/2.0/mlflow/experiments/search?max_results=1")
    if not isinstance(used, str) and used.status_code == httpx.codes.FORBIDDEN:
        host = httpx.URL(url).netloc.decode()
        cure = f"start it with `--allowed-hosts` that names {host}"
        yield Finding("mlflow", False, f"{url} does not want to be called {host}", cure)
        return
    yield _version("mlflow", url, told.text.strip())
    yield from _clock_of("mlflow", told)


def _ready(url: str, headers: Mapping[str, str]) -> Finding:
    answer = _ask(f"{url}/readyz", headers)
    if isinstance(answer, str):
        return Finding("api", False, f"{url}: {answer}", "see the server's log")
    if answer.is_success or answer.status_code == httpx.codes.UNAUTHORIZED:
        return Finding("api", True, f"answers at {url}")
    detail = f"{url} is not ready: {_member(answer, 'detail')}"
    return Finding("api", False, detail, "mend the parts it names; then it is ready by itself")


def _api_token(answer: httpx.Response, token: str | None, source: str) -> Finding:
    if answer.is_success:
        me = answer.json()
        return Finding("token", True, f"{me['owner']}, {me['role']} in project {me['project']}")
    cure = (
        "an administrator makes one: `stoplab tokens create NAME --owner YOU`; set it as "
        "STOPLAB_TOKEN"
    )
    if token is None:
        return Finding("token", False, f"none: STOPLAB_TOKEN is not set, no {source}", cure)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Finding("token", False, f"that of {source} is unknown, expired or revoked", cure)
    return Finding("token", False, "cannot be judged while the API is away", "mend the API first")


def _version(name: str, url: str, found: str) -> Finding:
    own = version(name)
    cure = f"install the same on both sides: pip install '{name}=={found}'"
    return Finding(name, found == own, f"{found} at {url}, {own} here", cure)


def _clock_of(name: str, answer: httpx.Response) -> Iterator[Finding]:
    """By the header `Date`, which counts whole seconds."""
    if (text := answer.headers.get("Date")) is not None:
        asked = time.time() - answer.elapsed.total_seconds() / 2
        ahead_s = parsedate_to_datetime(text).timestamp() + 0.5 - asked
        yield clock(f"clock of {name}", ahead_s)


def _ask(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response | str:
    """The answer, or why there is none."""
    try:
        near = is_loopback(httpx.URL(url).host)
        return httpx.get(url, headers=headers, timeout=ASK_S, trust_env=not near)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"does not answer ({error or type(error).__name__})"


def _secret(path: Path) -> str | None:
    """What a file holds; None where it cannot be read."""
    with suppress(OSError):
        return path.read_text().strip()
    return None


def _member(answer: httpx.Response, name: str) -> object:
    """A member of a JSON object; the status where the answer is none."""
    try:
        return answer.json()[name]
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
