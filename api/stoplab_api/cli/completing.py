"""What the shell offers at a TAB. It is never kept waiting, and never told of an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from stoplab_api.cli.connecting import connect
from stoplab_platform.errors import StoplabError
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import CellState
from stoplab_platform.specs import KINDS

ASK_S = 1.0
SUFFIXES = (".yaml", ".yml")

Offers = list[tuple[str, str]]
"""Each with a word of help, where the shell shows one."""


def job_ids(incomplete: str) -> Offers:
    """The newest jobs whose id begins so."""
    with suppress(StoplabError), connect(timeout_s=ASK_S, retries=False) as client:
        jobs = client.list(q=incomplete or None).items
        return [
            (job.id, f"{job.status.state} {job.kind} {job.name}")
            for job in jobs
            if job.id.startswith(incomplete)
        ]
    return []


def token_ids(incomplete: str) -> Offers:
    """The project's tokens that can still be revoked."""
    with suppress(StoplabError), connect(timeout_s=ASK_S, retries=False) as client:
        return [
            (token.id, f"{token.name} of {token.owner}")
            for token in client.tokens()
            if token.revoked_at is None and token.id.startswith(incomplete)
        ]
    return []


def states(incomplete: str) -> list[str]:
    """States of jobs."""
    return _matching(State, incomplete)


def cell_states(incomplete: str) -> list[str]:
    """States of a study's runs."""
    return _matching(CellState, incomplete)


def kinds(incomplete: str) -> list[str]:
    """Kinds of jobs."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def spec_files(incomplete: str) -> list[str]:
    """YAML files, and folders that may hold some."""
    return sorted(_spec_files(incomplete))


def _spec_files(incomplete: str) -> Iterator[str]:
    folder, _, start = incomplete.rpartition("/")
    above = f"{folder}/" if "/" in incomplete else ""
    with suppress(OSError):
        for path in Path(above or ".").iterdir():
            if not path.name.startswith(start) or (path.name.startswith(".") and not start):
                continue
            if path.is_dir():
                yield f"{above}{path.name}/"
            elif path.suffix in SUFFIXES:
                yield f"{above}{path.name}"


def _matching(words: Iterable[str], incomplete: str) -> list[str]:
    """In the case that was begun in: both are taken."""
    upper = [str(word) for word in words if str(word).startswith(incomplete.upper())]
    return [word.lower() for word in upper] if incomplete.islower() else upper
