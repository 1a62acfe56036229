"""One thing that was looked at, and helpers that all examinations share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SKEW_S = 5.0
"""Clocks further apart than this make ages and expiry times wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    cure: str | None = None
    """What to do, where it is not ok."""


def clock(name: str, ahead_s: float) -> Finding:
    """How far another clock is from this machine's."""
    word = "ahead" if ahead_s > 0 else "behind"
    return Finding(
        name,
        abs(ahead_s) <= SKEW_S,
        f"{abs(ahead_s):.1f} s {word} of this machine's" if abs(ahead_s) >= 1 else "agrees",
        "set both clocks by NTP (`timedatectl set-ntp true`)",
    )


def gib(number: float) -> str:
    """Bytes for people."""
    return f"{number / 1024**3:.1f} GiB"


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)
