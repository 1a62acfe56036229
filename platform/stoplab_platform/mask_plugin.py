"""What a masking of a plug-in does: it draws; all else is measured on what it drew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from stoplab_platform.mask_samplers import Drawn
from stoplab_platform.randomness import Keys, Stream, row_keys

MEASURED = 256  # images on which means are taken


class OwnMasks(ABC):
    """Masks that are drawn from one key a row."""

    @abstractmethod
    def draw(self, grid: int, keys: Keys) -> Drawn:
        """Masks of ``grid`` x ``grid`` patches, a row a key: a function of the keys alone.

        Indices ascend in each row; all rows, of all keys, have the same numbers of them.
        `stoplab_platform.randomness.uniforms` makes numbers of keys.
        """

    def infeasible(self, grid: int) -> Iterator[tuple[tuple[str, ...], str]]:
        """Why masks cannot be drawn on a grid: a field of this spec, and the reason."""
        yield from ()

    def measured(self, grid: int) -> Drawn:
        """Masks of some images of no run in particular."""
        rows = np.arange(MEASURED, dtype=np.int64)
        return self.draw(grid, row_keys(0, Stream.MASK, rows=rows))
