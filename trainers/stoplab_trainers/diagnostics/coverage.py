"""How often each patch of the grid is context and target, and which patches are starved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.specs import RunSpec
from stoplab_trainers.diagnostics.masks import first_masks, rows_together

STEPS = 64  # each has its own sizes of blocks, and by them its length of contexts
MOST_ROWS = 32  # images of each that are looked at
FEW = 0.1  # of the grid: a context that is shorter shows too little


@dataclass(frozen=True)
class Coverage:
    """Shares of images, by patch: [grid, grid]."""

    context: NDArray[np.float64]
    """In which it is context."""
    target: NDArray[np.float64]
    """In which it lies in a target block."""
    shortest: int
    """Fewest context patches of an image."""
    images: int
    """Images whose masks were looked at."""

    def stats(self) -> dict[str, float]:
        """``mask/context_coverage`` and ``mask/target_coverage`` (fractions of the rarest patch),
        ``mask/shortest_context`` (patches)."""
        return {
            "mask/context_coverage": float(self.context.min()),
            "mask/target_coverage": float(self.target.min()),
            "mask/shortest_context": float(self.shortest),
        }

    def faults(self) -> list[str]:
        """What the masks starve, in sentences; none as a rule."""
        found = []
        for name, shares in (("context", self.context), ("target", self.target)):
            never = int((shares == 0).sum())
            if never:
                found.append(f"{never} of {shares.size} patches are never {name}")
        if self.shortest < FEW * self.context.size:
            found.append(f"contexts have as few as {self.shortest} of {self.context.size} patches")
        return found


def coverage(spec: RunSpec) -> Coverage:
    """Of the masks of some images in a run's first steps, as its first worker draws them."""
    patches = spec.grid**2
    context, target = np.zeros(patches), np.zeros(patches)
    images, shortest = 0, patches
    for step in range(STEPS):
        drawn = first_masks(spec, step, min(MOST_ROWS, rows_together(spec)))
        hit = np.zeros((len(drawn.targets), patches), dtype=bool)
        np.put_along_axis(hit, drawn.targets.flatten(1).numpy(), True, axis=1)
        context += np.bincount(drawn.context.flatten().numpy(), minlength=patches)
        target += hit.sum(axis=0)
        images += len(hit)
        shortest = min(shortest, drawn.context.shape[1])
    square = (spec.grid, spec.grid)
    return Coverage(
        (context / images).reshape(square), (target / images).reshape(square), shortest, images
    )
