"""What a spec may refer to: places, secrets and jobs. All that is wrong, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stoplab_platform.errors import Problem
from stoplab_platform.secret_store import Secrets, references, texts
from stoplab_platform.settings import Settings
from stoplab_platform.sources import named_jobs
from stoplab_platform.specs.places import is_place, why_refused


def untrusted(
    spec: dict[str, Any], settings: Settings, project: str, has_job: Callable[[str], bool]
) -> Iterator[Problem]:
    """Problems of a spec (plain data) that a project asks to be run."""
    for path, text in texts(spec):
        if is_place(path) and (
            why := why_refused(text, settings.data_roots, settings.data_schemes)
        ):
            yield Problem(path, why)
    if not settings.secrets_on_nodes:
        yield from _unknown_secrets(spec, Secrets(settings, project))
    for path, source in named_jobs(spec):
        if not has_job(source):
            yield Problem(path, f"no job {source}")


def _unknown_secrets(spec: dict[str, Any], secrets: Secrets) -> Iterator[Problem]:
    for path, name in references(spec):
        if not secrets.known(name):
            yield Problem(
                path, f"there is no secret {name!r}; `stoplab secrets set {name}` makes it"
            )
