"""The contract of a runner: what starts and stops attempts.

A runner's word about an attempt is a hint. How it ended is decided by the attempt's own
`result.json`; a runner only tells whether it is worth waiting for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class RunnerState(StrEnum):
    """What a runner knows of a submission."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    ABSENT = "ABSENT"

    @property
    def over(self) -> bool:
        """Whether, by the runner's word, nothing of it lives."""
        return self not in (RunnerState.PENDING, RunnerState.RUNNING)


@dataclass(frozen=True)
class Observed:
    """A runner's word."""

    state: RunnerState
    message: str | None = None


@dataclass(frozen=True)
class Launch:
    """One process to start."""

    submission_id: str
    """Its name, the same whoever asks; a second start of it does nothing."""
    entrypoint: Sequence[str]
    """Program and arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Laid over the environment that the runner's processes have."""
    gpus: float = 0
    """GPUs of the process itself, not of workers it starts; admission has reserved them."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """For people who look at the cluster."""


class Runner(Protocol):
    """Every call may raise RunnerUnavailable, returns within seconds, and may be repeated."""

    tied_to_parent: bool
    """Whether a process must end with the one that started it."""

    def start(self, launch: Launch) -> None:
        """Start a process unless its submission id is known; then it is adopted as it is."""

    def observe(self, submission_id: str) -> Observed:
        """What is known of a submission; ABSENT when nothing is."""

    def stop(self, submission_id: str) -> None:
        """Ask its processes to end (SIGTERM) and kill them soon after; does not wait."""

    def forget(self, submission_id: str) -> None:
        """Drop what is kept of a submission; RunnerUnavailable while that may live."""

    def alive(self) -> bool:
        """Whether the runner would take a start now; never raises."""
