"""Whether the parts behind the server do their work: each probe gives what is wrong, or None."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from stoplab_api.context import Lab
from stoplab_platform.errors import StoreUnavailable

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
        return f"{uri}: {error or type(error).__name__}"
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
