"""A study's pages and pictures, written into its folder.

Imports plotting libraries, which take seconds: only a study's end needs it. What fails here is
logged and left out, for the numbers stand without it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stoplab_platform.files import write_atomic, write_json
from stoplab_platform.ledger import Cell
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import ComparisonSpec, SweepSpec
from stoplab_sweeps.curves import learning_curves
from stoplab_sweeps.figures import comparison_png
from stoplab_sweeps.report_html import comparison_html, surface_html
from stoplab_sweeps.report_latex import comparison_tex
from stoplab_sweeps.surface_figure import surface_png
from stoplab_sweeps.surface_rows import surface_of

log = logging.getLogger("stoplab")

Makers = Mapping[Path, Callable[[Path], None]]


def comparison_files(
    spec: ComparisonSpec, folder: JobFolder, cells: Sequence[Cell], judged: Mapping[str, Any]
) -> list[Path]:
    """Write the comparison as HTML, PNG and LaTeX; the files that could be written."""
    return made(comparison_makers(spec, folder, cells, judged))


def comparison_makers(
    spec: ComparisonSpec, folder: JobFolder, cells: Sequence[Cell], judged: Mapping[str, Any]
) -> Makers:
    """What writes each file, given where to."""

    @functools.cache
    def curves() -> Any:
        return learning_curves(folder, cells)

    return {
        folder.comparison_tex: lambda to: write_atomic(to, comparison_tex(spec.name, judged)),
        folder.comparison_png: lambda to: comparison_png(spec.name, judged, curves(), to),
        folder.comparison_html: lambda to: write_atomic(
            to, comparison_html(spec.name, judged, curves())
        ),
    }


def surface_files(spec: SweepSpec, folder: JobFolder, cells: Sequence[Cell]) -> list[Path]:
    """Write the response surface as JSON, HTML and PNG; where there is none, only why."""
    return made(surface_makers(spec, folder, cells))


def surface_makers(spec: SweepSpec, folder: JobFolder, cells: Sequence[Cell]) -> Makers:
    """What writes each file, given where to."""

    @functools.cache
    def found() -> dict[str, Any]:
        return surface_of(spec, cells)

    def drawn(draw: Callable[[dict[str, Any]], None]) -> None:
        if found()["reason"] is None:
            draw(found())

    return {
        folder.surface: lambda to: write_json(to, found()),
        folder.surface_png: lambda to: drawn(lambda one: surface_png(spec.name, one, to)),
        folder.surface_html: lambda to: drawn(
            lambda one: write_atomic(to, surface_html(spec.name, one))
        ),
    }


def made(makers: Makers) -> list[Path]:
    """Make every file; none is left of an earlier start."""
    for path, make in makers.items():
        path.unlink(missing_ok=True)
        try:
            make(path)
        except Exception as error:  # a picture must not cost a study its result
            log.warning("no %s: %s: %s", path.name, type(error).__name__, error)
    return [path for path in makers if path.exists()]
