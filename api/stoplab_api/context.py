"""What a running server holds; every route gets at it by `LabDep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Annotated

from fastapi import Depends, Request

from stoplab_api.instruments import Instruments
from stoplab_api.rates import Rates
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.base import Runner
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings


@dataclass(frozen=True)
class Lab:
    """The parts that stand behind REST."""

    settings: Settings
    store: JobStore
    jobs: Jobs
    runner: Runner
    rates: Rates
    reconciler: Reconciler
    instruments: Instruments
    heart: Thread | None = None
    """The reconciler's; None where this process runs none."""
    closing: Event = field(default_factory=Event)
    """Set when the server stops: open streams end then."""


async def _lab(request: Request) -> Lab:
    lab = request.app.state.lab
    assert isinstance(lab, Lab)
    return lab


LabDep = Annotated[Lab, Depends(_lab)]
