"""Whether the parts behind the server do their work: each probe gives what is wrong, or None."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from stoplab_api.context import Lab
from stoplab_platform.errors import StoreUnavailable
from stoplab_platform.redaction import scrubbed, without_credentials

MLFLOW_TIMEOUT_S = 2.0
STALE_PASSES = 15
"""Periods without a good pass after which the reconciler counts as stuck."""


def database(lab: Lab) -> str | None:
    """Takes a write."""
    try:
        lab.store.ping()
    except StoreUnavailable as error:
        return str(error)
    return None


def runner(lab: Lab) -> str | None:
    """Would start an attempt."""
    return None if lab.runner.alive() else "the cluster does not answer"


def mlflow(lab: Lab) -> str | None:
    """Answers, where it is a server."""
    uri = lab.settings.tracking_uri
    if not uri.startswith(("http://", "https://")):
        return None
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=MLFLOW_TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        return f"{without_credentials(uri)}: {scrubbed(str(error)) or type(error).__name__}"
    return None


def reconciler(lab: Lab) -> str | None:
    """Lives, and its passes come to good ends."""
    if lab.heart is None:
        return None
    if not lab.heart.is_alive():
        return "its thread has ended; restart the server"
    return lab.reconciler.pulse.trouble(STALE_PASSES * lab.settings.reconcile_period_s)


PARTS: dict[str, Callable[[Lab], str | None]] = {
    "database": database,
    "runner": runner,
    "mlflow": mlflow,
    "reconciler": reconciler,
}
"""What readiness needs."""


def what_is_wrong(lab: Lab) -> dict[str, str | None]:
    """Every part's trouble, or None; asked at once, so that two that hang cost the time of one."""
    with ThreadPoolExecutor(len(PARTS), thread_name_prefix="stoplab-probe") as pool:
        asked = {name: pool.submit(probe, lab) for name, probe in PARTS.items()}
        return {name: answer.result() for name, answer in asked.items()}
