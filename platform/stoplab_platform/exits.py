"""Exit codes of entrypoints: what a process tells its supervisor by ending."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How an entrypoint ended; 66 is EX_NOINPUT of sysexits.h, 75, 76 and 79 are free for us."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    NO_DATA = 66
    STOPPED = 75
    FENCED = 76
    HUNG = 79
