"""CPUs and GPUs as numbers to add and compare."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

SLACK = 1e-9  # sums of fractional reservations


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs."""

    cpus: float = 0
    gpus: float = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def __mul__(self, times: float) -> Resources:
        return Resources(self.cpus * times, self.gpus * times)

    def fits(self, capacity: Resources) -> bool:
        """Whether both are within ``capacity``."""
        return self.cpus <= capacity.cpus + SLACK and self.gpus <= capacity.gpus + SLACK

    def times_in(self, capacity: Resources) -> int:
        """How often this fits into ``capacity``."""
        ratios = [
            have / need
            for have, need in ((capacity.cpus, self.cpus), (capacity.gpus, self.gpus))
            if need > 0
        ]
        return floor(min(ratios, default=0) + SLACK)

    def within(self, capacity: Resources) -> Resources:
        """This, clipped to ``capacity``."""
        return Resources(min(self.cpus, capacity.cpus), min(self.gpus, capacity.gpus))

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} CPUs{gpus}"
