"""The client of the server that the environment names, or of this home's lab."""

from __future__ import annotations

from pathlib import Path

from stoplab_api.client import Client
from stoplab_api.local import find
from stoplab_platform.errors import SettingsError, StoplabError
from stoplab_platform.settings import Settings


def connect(*, timeout_s: float = 30.0, retries: bool = True) -> Client:
    """Raises StoplabError when there is no server to talk to."""
    settings = Settings()
    url, token, home = settings.api_url, settings.token, settings.folders
    if url is None:
        lab = find(home)
        if lab is None:
            raise StoplabError(
                f"no lab runs in {home.root}: start one with `stoplab up`, or set STOPLAB_HOME "
                "or STOPLAB_API_URL"
            )
        url = lab.place.url("api")
    if token is None and home.token_file.exists():
        token = _read(home.token_file)
    return Client(url, token, timeout_s=timeout_s, retries=retries)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"the token in {path} cannot be read ({error.strerror}): it is its owner's alone; "
            "set STOPLAB_TOKEN to one of yours"
        ) from error
