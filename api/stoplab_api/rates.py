"""How often somebody may ask: token buckets, kept in this process alone."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from stoplab_api.answers import Code
from stoplab_api.problems import ApiProblem
from stoplab_platform.settings import Settings

GUESSES_PER_S, GUESSES = 1.0, 20
"""Wrong tokens of one address: refill and size of its bucket."""
MOST_KEYS = 10_000


class Buckets:
    """One bucket a key: it holds ``burst``, and gets ``per_s`` back each second; 0: no limit."""

    def __init__(
        self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_s, self.burst = per_s, burst
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}
        """What a bucket held, and when. One that is not here is full."""
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take one; seconds until there is one where there is none, and 0 where there was."""
        return self._ask(key, 1)

    def wait(self, key: str) -> float:
        """As `take`, but nothing is taken."""
        return self._ask(key, 0)

    def _ask(self, key: str, taken: int) -> float:
        if self.per_s <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            level = self._level(key, now)
            if level < 1:
                return (1 - level) / self.per_s
            self._levels[key] = (level - taken, now)
            if len(self._levels) > MOST_KEYS:
                self._forget_full(now)
        return 0.0

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (self.burst, now))
        return min(self.burst, level + (now - at) * self.per_s)

    def _forget_full(self, now: float) -> None:
        levels = {key: self._level(key, now) for key in self._levels}
        self._levels = {key: (level, now) for key, level in levels.items() if level < self.burst}


@dataclass(frozen=True)
class Rates:
    """The limits of one replica."""

    requests: Buckets
    """By token."""
    guesses: Buckets
    """Tokens that are none, by address."""

    @classmethod
    def of(cls, settings: Settings) -> Rates:
        """As the settings say; STOPLAB_RATE_PER_S=0 switches both off."""
        per_s = settings.rate_per_s
        guesses = Buckets(GUESSES_PER_S if per_s else 0, GUESSES)
        return cls(Buckets(per_s, settings.rate_burst), guesses)


def limited(buckets: Buckets, wait_s: float, whose: str) -> ApiProblem:
    """The refusal, with the headers of draft-ietf-httpapi-ratelimit-headers."""
    seconds = math.ceil(wait_s)
    window = math.ceil(buckets.burst / buckets.per_s)
    return ApiProblem(
        Code.RATE_LIMITED,
        f"{whose} may ask {buckets.per_s:g} times a second, {buckets.burst:g} at once; "
        f"ask again in {seconds} s",
        headers={
            "Retry-After": str(seconds),
            "RateLimit-Policy": f'"default";q={buckets.burst:g};w={window}',
            "RateLimit": f'"default";r=0;t={seconds}',
        },
    )
