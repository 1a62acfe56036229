"""`stoplab compare report`, also `stoplab jobs report`: a finished study as a file."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import BadInput, print_text, reported
from stoplab_platform.paths import JobFolder
from stoplab_platform.settings import Settings


class Format(StrEnum):
    """What a report can be had as."""

    MD = "md"
    TEX = "tex"
    JSON = "json"
    HTML = "html"
    PNG = "png"


SHORT = (Format.MD, Format.TEX, Format.JSON)  # what a terminal can show


@reported
def report(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A job's id, or its folder on this machine.")
    ],
    format: Annotated[
        Format, typer.Option(help="A sweep has json, html and png of its response surface.")
    ] = Format.MD,
    out: Annotated[
        Path | None,
        typer.Option(help="A file to write. By default html and png get a name, the rest is "
                     "printed."),
    ] = None,
) -> None:  # fmt: skip
    """Give the report of a comparison, or the response surface of a sweep."""
    folder = _here(job)
    if folder is not None:
        # A process of its own: the reports stand in a wing that this one does not import.
        words = [str(folder.root), "--format", format, *(["--out", str(out)] if out else [])]
        command = [sys.executable, "-P", "-m", "stoplab_sweeps.report_main", *words]
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    content = _from_server(job, format)
    if out is None and format in SHORT:
        sys.stdout.write(content.decode())
        return
    path = out or Path(f"{job}.{format}")
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BadInput(f"out: {path}: {error.strerror}") from error
    print_text(str(path))


def _here(job: str) -> JobFolder | None:
    """The job's folder, where this machine's home is the one that is spoken of."""
    if Path(job).is_dir():
        return JobFolder(Path(job).absolute())
    settings = Settings()
    if settings.api_url is not None or "/" in job:
        return None
    folder = settings.folders.job(job)
    return folder if folder.spec.exists() else None


def _from_server(job_id: str, format: Format) -> bytes:
    with connect() as client:
        kind = client.get(job_id).kind
        if kind != "sweep":
            return client.report(job_id, format)
        if format in (Format.MD, Format.TEX):
            raise BadInput("a sweep's response surface comes as json, html or png")
        return client.report(job_id, format, of="surface")
