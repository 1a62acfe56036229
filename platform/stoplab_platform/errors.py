"""The short ladder of errors that stoplab raises on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input.

    Attributes:
        path: the field at fault, from the root of the spec, as keys and list indices.
        message: a sentence that names the value and what would be right.
        involves: other fields the check looked at (for checks across fields).
    """

    path: tuple[str | int, ...]
    message: str
    involves: tuple[tuple[str | int, ...], ...] = ()

    @property
    def dotted(self) -> str:
        """The path as people write it on a command line: ``masking.target.scale``."""
        return ".".join(str(part) for part in self.path)

    def pointer(self, prefix: str = "") -> str:
        """The path as a JSON pointer (RFC 6901), below ``prefix``."""
        escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in self.path)
        return prefix + "".join(f"/{part}" for part in escaped)


class StoplabError(Exception):
    """The root of stoplab's own errors."""


class SpecError(StoplabError, ValueError):
    """A spec was refused; ``problems`` holds every reason at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        lines = [f"  {p.dotted or '(spec)'}: {p.message}" for p in self.problems]
        super().__init__(f"{len(lines)} problem(s) in the spec:\n" + "\n".join(lines))

    @classmethod
    def of(cls, field: str, message: str) -> SpecError:
        """One problem with one top-level field."""
        return cls([Problem((field,), message)])


class SettingsError(StoplabError, ValueError):
    """The environment asks for something stoplab cannot do."""


class IllegalMove(StoplabError):
    """A job was asked for what its state does not allow; ``allowed`` says what it does."""

    def __init__(self, message: str, *, state: str, allowed: Sequence[str] = ()) -> None:
        self.state, self.allowed = state, tuple(allowed)
        super().__init__(message)


class Conflict(StoplabError):
    """Somebody else changed the row first (optimistic version)."""


class KeyReused(StoplabError, ValueError):
    """An idempotency key came again with another body."""


class Forbidden(StoplabError):
    """Known, visible, but not yours to change."""


class NotFound(StoplabError):
    """No such thing, or not for you."""


class RunnerUnavailable(StoplabError):
    """The cluster does not answer; what was accepted stays accepted."""


class StoreUnavailable(StoplabError):
    """The database does not answer."""


class TrackerUnavailable(StoplabError):
    """MLflow does not answer; what was spooled stays spooled."""


class TrackerRefused(TrackerUnavailable):
    """MLflow answers, and will not take this however often it is sent."""


class CheckpointError(StoplabError):
    """A checkpoint is missing, broken, or belongs to another run."""


class DataError(StoplabError, ValueError):
    """Shards or samples cannot be read as asked."""


class DataMissing(DataError):
    """Data that a spec names are not there."""


class DataAway(StoplabError):
    """The place that holds data does not answer, or not in time; it may do so later."""


class Stopped(StoplabError):
    """A run ended early because its stop file asked for it."""

    def __init__(self, intent: str, step: int) -> None:
        self.intent, self.step = intent, step
        super().__init__(f"stopped ({intent}) at step {step}")


class Fenced(StoplabError):
    """A newer attempt owns the job's folder: this process must end."""
