"""`stoplab inspect`: what the noise does in a run, as pictures and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stoplab_api.cli.completing import job_ids
from stoplab_api.cli.run import hand_over
from stoplab_api.cli.show import AsJson, reported


@reported
def inspect(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A job's id, an MLflow run id, or the folder of a run or of a checkpoint.",
            autocompletion=job_ids,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for the page and its pictures. By default inspect-RUN-step-N "
                     "here."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="An image to draw on, or a folder of some; may be repeated. By default "
                     "the first of the run's own data."),
    ] = None,
    draws: Annotated[
        int, typer.Option(min=2, max=1024, help="Draws of the noise for each prediction.")
    ] = 16,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Draw where noised positions land, what predictions make of it, masks and history."""
    words = [run, "--draws", str(draws)]
    words += [word for image in images or () for word in ("--images", str(image))]
    words += ["--out", str(out)] if out else []
    words += ["--force"] if force else []
    words += ["--json"] if as_json else []
    hand_over("inspecting", words)
