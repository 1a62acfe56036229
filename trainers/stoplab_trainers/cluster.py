"""Joining Ray: the cluster a job runs in, or one of this process's own."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from collections.abc import Iterator

# What Ray should not decide by itself: prints appear once, reports are not paced to seconds,
# and no token file appears in somebody's home.
CALM = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Read when ray is imported, so that who starts us decides: `stoplab train` gives a token.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A job that was submitted with env_vars of its own may be given these names as well.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
}
PASSED_ON = (
    "STOPLAB_HOME",
    "STOPLAB_JOB_ID",
    "STOPLAB_ATTEMPT",
    "MLFLOW_TRACKING_URI",
    "PYTHONPATH",
    "RAY_TRAIN_ENABLE_PRINT_PATCH",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
)


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster of a Ray job, or start a local Ray for as long as the block lasts.

    `RAY_ADDRESS` counts only where it is the cluster's own address: the dashboard's (http://),
    which `ray job submit` reads, is none that a driver can join.
    """
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS", "")
    joins = bool(address) and not address.startswith("http")
    if not joins:
        os.environ.pop("RAY_ADDRESS", None)
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    mine = not ray.is_initialized()
    if mine:
        ray.init(
            address=address if joins else "local",
            log_to_driver=False,
            include_dashboard=None if joins else True,
            runtime_env={"env_vars": env},
        )
    try:
        yield
    finally:
        if mine:
            ray.shutdown()
