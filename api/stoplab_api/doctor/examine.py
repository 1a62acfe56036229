"""What is wrong with a machine, its lab and its servers, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator

from stoplab_api.doctor.finding import Finding
from stoplab_api.doctor.lab import lab_parts
from stoplab_api.doctor.machine import machine
from stoplab_api.doctor.packages import packages
from stoplab_api.doctor.services import services
from stoplab_api.doctor.storage import storage
from stoplab_platform.settings import Settings


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything that can be looked at from here; nothing is changed."""
    yield from machine(settings.folders)
    yield from packages()
    yield from storage(settings)
    yield from lab_parts(settings)
    yield from services(settings)
