"""Exit codes of entrypoints: what a process tells its supervisor by ending."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How an entrypoint ended; 75 and 76 lie in the range of sysexits.h that nothing else uses."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    STOPPED = 75
    FENCED = 76
