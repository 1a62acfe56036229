"""What a fault test did by force: it is printed, and a test that did nothing fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class KillLedger:
    """Counts what was killed, cut or taken away."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def did(self, what: str, times: int = 1) -> None:
        """One more, or several."""
        self.counts[what] += times

    def note(self, line: str) -> None:
        """Something else that was seen."""
        self.notes.append(line)

    def told(self) -> str:
        """All of it as one line."""
        done = [f"{what} x {times}" for what, times in sorted(self.counts.items())]
        return f"{self.name}: {', '.join(done) or 'nothing'}; {'; '.join(self.notes)}"


@contextmanager
def kill_ledger(name: str, *expected: str) -> Iterator[KillLedger]:
    """A ledger, printed at the end; each of ``expected`` must have been done at least once."""
    ledger, began = KillLedger(name), time.monotonic()
    try:
        yield ledger
    finally:
        ledger.note(f"{time.monotonic() - began:.0f} s")
        print(ledger.told())
    missing = [what for what in expected if not ledger.counts[what]]
    assert not missing, f"{name} tested nothing: no {', '.join(missing)}"
