"""Room for workers in a Ray cluster, asked for by placement groups.

A placement group is Ray's own answer to "would so many workers fit now": it knows what each node
has free, passes over nodes that are drained or gone, is a demand that autoscalers answer, and what
it was given nobody else takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from stoplab_platform.specs.run import ComputeSpec


def resources_of(compute: ComputeSpec) -> dict[str, float]:
    """What one worker takes, by Ray's names."""
    gpus = {"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {}
    return {"CPU": compute.cpus_per_worker, **gpus}


class Room:
    """What is held for workers, from the fewest that may run up to the most.

    As a context it leaves nothing held.
    """

    def __init__(self, each: dict[str, float], counts: Sequence[int]) -> None:
        self._each, self._counts = each, counts
        self._found = 0  # how many of the counts there is room for
        self._held: list[PlacementGroup] = []
        self._asked: tuple[PlacementGroup, Any] | None = None  # and what tells when it is granted

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self.give()

    @property
    def count(self) -> int:
        """The largest number of workers that there is room for, as far as was looked; 0: none."""
        return self._counts[self._found - 1] if self._found else 0

    def look(self, patience_s: float) -> int:
        """`count`, after the cluster had so long for each further step of it."""
        while self._found < len(self._counts):
            if self._asked is None:
                self._asked = self._ask(self._counts[self._found] - self.count)
            group, granted = self._asked
            if not ray.wait([granted], timeout=patience_s)[0]:
                break
            self._held.append(group)
            self._asked = None
            self._found += 1
        return self.count

    def give(self) -> None:
        """Hold no longer what was found, so that the workers can take it.

        Nor is more waited for: it would be granted of what they need. Look again when they have it.
        """
        if self._asked is not None:
            remove_placement_group(self._asked[0])
            self._asked = None
        while self._held:
            remove_placement_group(self._held.pop())

    def _ask(self, more: int) -> tuple[PlacementGroup, Any]:
        group = placement_group([self._each] * more, strategy="PACK")
        return group, group.ready()
