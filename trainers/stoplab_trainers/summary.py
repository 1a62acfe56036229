"""What a finished run leaves behind for whoever asks later."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from stoplab_platform.files import read_json, write_atomic
from stoplab_platform.paths import RunFolder


class Summary(BaseModel):
    """What a finished run leaves behind."""

    metrics: dict[str, float]
    """Final evaluations and the last logged step, by name."""
    certificate: dict[str, str]
    """Hashes of what it was fed, for pairing."""
    facts: dict[str, Any]
    """Resolved precision, threads, device, data fingerprint, what judged it, versions, and the
    sha256 of the weights it began from (`init_from`)."""
    run_digest: str
    """Identity of its weights."""
    weights_sha256: str
    """Hash of the final weights: model and EMA target."""
    mlflow_run_id: str | None
    """Its run in MLflow, where that was reached in time."""
    steps: int
    """Steps that the weights have seen."""
    elapsed_s: float
    """Seconds of this process."""


def summary_of(folder: RunFolder) -> Summary | None:
    """The summary of a finished run, None while it is not finished."""
    data = read_json(folder.summary)
    return None if data is None else Summary.model_validate(data)


def left(folder: RunFolder, summary: Summary) -> Summary:
    """The summary, once it lies in the run's folder."""
    write_atomic(folder.summary, summary.model_dump_json(indent=1) + "\n")
    return summary
