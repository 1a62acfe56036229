"""`stoplab export RUN --to timm|safetensors|onnx|mlflow|official`: weights out of the lab."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stoplab_api.cli.completing import job_ids
from stoplab_api.cli.run import hand_over
from stoplab_api.cli.show import AsJson, BadInput, reported


class To(StrEnum):
    """What weights can be had as."""

    TIMM = "timm"
    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    MLFLOW = "mlflow"
    OFFICIAL = "official"


@reported
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A job's id, JOB/CELL of a study, an MLflow run's id, or the path of a "
            "checkpoint, a run's or a job's folder.",
            autocompletion=job_ids,
        ),
    ],
    to: Annotated[
        To,
        typer.Option(
            help="The EMA encoder for timm, with a model card, as ONNX, or as an MLflow model of "
            "its run; or the whole checkpoint in the authors' layout."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A file by its ending, else a folder. None for mlflow.")
    ] = None,
    cell: Annotated[str | None, typer.Option(help="Which of a study's runs.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a trained encoder, from its run's newest checkpoint."""
    if (out is None) != (to is To.MLFLOW):
        raise BadInput("out: a model of MLflow is kept there" if out else "out: give --out PATH")
    # As one word each: a name may begin with a dash.
    words = [f"--to={to}", *(["--force"] if force else []), *(["--json"] if as_json else [])]
    words += [f"--out={out}"] if out else []
    words += [f"--cell={cell}"] if cell else []
    hand_over("export", [*words, "--", run])
