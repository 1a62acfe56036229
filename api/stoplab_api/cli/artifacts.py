"""`stoplab jobs artifacts`: the files of a job, or one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import AsJson, JobId, print_json, print_table, print_text, reported


@reported
def artifacts(
    job_id: JobId,
    path: Annotated[str | None, typer.Argument(help="A file, as the list has it.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write. Default: the working folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List a job's files, or fetch one; a fetch that broke goes on where it was."""
    with connect() as client:
        if path is not None:
            written = client.download(job_id, path, out or Path.cwd())
            if as_json:
                print_json({"path": path, "out": str(written), "bytes": written.stat().st_size})
            else:
                print_text(str(written))
            return
        found = client.artifacts(job_id)
    if as_json:
        print_json({"items": [one.model_dump(mode="json") for one in found]})
        return
    rows = [(one.path, one.bytes, f"{one.modified:%Y-%m-%d %H:%M:%S}") for one in found]
    print_table(("path", "bytes", "modified"), rows)
