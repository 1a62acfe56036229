"""What a project may hold at once."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from pydantic import BaseModel, ConfigDict, Field

from stoplab_platform.resources import SLACK, Resources

OTHERS = "*"
"""Stands for every project that has no quota of its own."""


class Quota(BaseModel):
    """Reservations and jobs of one project; null: as many as the lab has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float | None = Field(default=None, gt=0)
    gpus: float | None = Field(default=None, ge=0)
    jobs: int | None = Field(default=None, ge=1)

    @property
    def resources(self) -> Resources:
        """CPUs and GPUs; infinite where there is no bound."""
        return Resources(
            inf if self.cpus is None else self.cpus, inf if self.gpus is None else self.gpus
        )

    def keeps_out(self, demand: Resources, held: Resources, jobs: int) -> Iterator[str]:
        """Why a demand must wait beside what its project holds, as `6 of its 8 GPUs`."""
        rows = (
            ("CPUs", demand.cpus, held.cpus, self.cpus),
            ("GPUs", demand.gpus, held.gpus, self.gpus),
            ("jobs", 1, jobs, self.jobs),
        )
        for unit, more, has, most in rows:
            if most is not None and more and has + more > most + SLACK:
                yield f"{has:g} of its {most:g} {unit}"
