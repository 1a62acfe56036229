"""Write a study's report anew, from its folder, in any format.

    python -m stoplab_sweeps.report_main JOB_FOLDER --format md|tex|json|html|png [--out FILE]

A comparison has every format; a sweep has its response surface as json, html and png. Without
`--out`, md, tex and json go to stdout, html and png into the job's folder. Exit codes are those
of `stoplab_platform.exits`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoplab_platform.errors import DataError, SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_atomic
from stoplab_platform.ledger import Cell, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import ComparisonSpec, SweepSpec, load_spec
from stoplab_sweeps.curves import learning_curves
from stoplab_sweeps.figures import comparison_png
from stoplab_sweeps.report import comparison_markdown
from stoplab_sweeps.report_html import comparison_html, surface_html
from stoplab_sweeps.report_latex import comparison_tex
from stoplab_sweeps.surface_figure import surface_png
from stoplab_sweeps.surface_rows import surface_of

FORMATS = ("md", "tex", "json", "html", "png")
SHORT = ("md", "tex", "json")  # what a terminal can show


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, write, and say where it is or what is missing."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_sweeps.report_main")
    parser.add_argument("folder", type=Path, help="a job's folder")
    parser.add_argument("--format", choices=FORMATS, default="md")
    parser.add_argument("--out", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    try:
        written = report(JobFolder(options.folder.absolute()), options.format, options.out)
    except (SpecError, DataError) as error:
        print(error, file=sys.stderr)
        return Exit.BAD_INPUT
    except OSError as error:
        if options.out is None:
            raise
        print(f"out: {options.out}: {error.strerror}", file=sys.stderr)
        return Exit.BAD_INPUT
    print(written, end="" if written.endswith("\n") else "\n")
    return Exit.OK


def report(folder: JobFolder, wanted: str, out: Path | None = None) -> str:
    """Write one format; what was written, or the path of the file that holds it.

    DataError where the folder holds no study, no result yet, or the kind has no such format.
    """
    if not folder.spec.exists():
        raise DataError(f"{folder.root} is not a job's folder")
    spec, cells = load_spec(folder.spec), Ledger(folder).cells()
    if isinstance(spec, ComparisonSpec):
        kept = {"html": folder.comparison_html, "png": folder.comparison_png}
        written = _comparison(spec, folder, cells, wanted, out or kept.get(wanted))
    elif isinstance(spec, SweepSpec):
        kept = {"html": folder.surface_html, "png": folder.surface_png}
        written = _surface(spec, cells, wanted, out or kept.get(wanted))
    else:
        raise DataError(f"a {spec.kind} job has no report; sweeps and comparisons have")
    if out is None and wanted in SHORT:
        return written
    path = out or kept[wanted]
    if wanted != "png":
        write_atomic(path, written)
    return str(path)


def _comparison(
    spec: ComparisonSpec, folder: JobFolder, cells: Sequence[Cell], wanted: str, to: Path | None
) -> str:
    """The text of a format; a picture is written at once."""
    judged = read_json(folder.comparison)
    if judged is None:
        raise DataError(f"{folder.root} has no result yet")
    match wanted:
        case "json":
            return _plain(judged)
        case "md":
            return comparison_markdown(spec, judged)
        case "tex":
            return comparison_tex(spec.name, judged)
    curves = learning_curves(folder, cells)
    if wanted == "html":
        return comparison_html(spec.name, judged, curves)
    assert to is not None, "pictures have a place"
    comparison_png(spec.name, judged, curves, to)
    return ""


def _surface(spec: SweepSpec, cells: Sequence[Cell], wanted: str, to: Path | None) -> str:
    if wanted in ("md", "tex"):
        raise DataError("a sweep's response surface comes as json, html or png")
    found = surface_of(spec, cells)
    if wanted == "json":
        return _plain(found)
    if found["reason"] is not None:
        raise DataError(f"no response surface: {found['reason']}")
    if wanted == "html":
        return surface_html(spec.name, found)
    assert to is not None, "pictures have a place"
    surface_png(spec.name, found, to)
    return ""


def _plain(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
