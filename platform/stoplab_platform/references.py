"""From what people call a run to its folder: a path, a job's id, a study's cell, an MLflow run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stoplab_platform.errors import CheckpointError, NotFound, TrackerRefused
from stoplab_platform.files import is_plain_name
from stoplab_platform.paths import CHECKPOINT_MANIFEST, JobFolder, RunFolder
from stoplab_platform.settings import Settings
from stoplab_platform.specs.places import is_inside
from stoplab_platform.specs.weights import CheckpointRef
from stoplab_platform.tracking import tags_of
from stoplab_platform.tracking.mlflow_runs import PARENT

MOST_NAMED = 20  # runs of a study that a message lists


@dataclass(frozen=True)
class Found:
    """What a reference names.

    Attributes:
        run: the run's folder.
        checkpoint: the one of its checkpoints that was named; None: the newest is meant.
    """

    run: RunFolder
    checkpoint: Path | None = None


def find(text: str, settings: Settings, cell: str | None = None) -> Found:
    """A run by a path (of a checkpoint, a run or a job), `JOB`, `JOB/CELL` or an MLflow run's id.

    ``cell`` chooses one of a study's runs. Raises NotFound, which lists a study's runs where none
    was chosen; CheckpointError for a path that is neither the lab's own nor allowed by it;
    TrackerUnavailable.
    """
    job, _, named = text.partition("/")
    if is_plain_name(job) and settings.folders.job(job).root.is_dir():
        return Found(_of_job(job, named or cell, settings))
    if Path(text).exists():
        # Who types it reads the lab's own folders anyway; in a spec they are named by their job.
        inside = is_inside(Path(text), [settings.folders.jobs])
        return _at(Path(text) if inside else permitted(text), cell)
    if re.fullmatch("[0-9a-f]{32}", text):
        return Found(_of_mlflow(text, settings))
    raise NotFound(
        f"{text!r} is no folder, no job in {settings.folders.jobs}, and no id of an MLflow run"
    )


def referred(ref: CheckpointRef, settings: Settings) -> Found:
    """What a spec's reference names; raises as `find`."""
    if ref.path is not None:
        return _at(permitted(ref.path), None)
    if ref.job is not None:
        return Found(_of_job(ref.job, ref.cell, settings))
    assert ref.mlflow_run is not None, "a reference names one of the three"
    return Found(_of_mlflow(ref.mlflow_run, settings))


def permitted(place: str) -> Path:
    """The file or folder that a spec names; CheckpointError outside of what the lab allows."""
    path = Path(place)
    if not is_inside(path, Settings().data_roots):
        raise CheckpointError(f"{place} lies outside of what STOPLAB_DATA_ROOTS allows")
    return path


def _at(path: Path, cell: str | None) -> Found:
    path = path.resolve()  # of a step's folder the run's is two above, whatever was written
    if (path / CHECKPOINT_MANIFEST).exists():
        return Found(RunFolder(path.parent.parent), path)
    job = JobFolder(path)
    return Found(_chosen(job, cell) if job.runs.is_dir() else RunFolder(path))


def _of_job(job_id: str, cell: str | None, settings: Settings) -> RunFolder:
    if not is_plain_name(job_id) or not settings.folders.job(job_id).root.is_dir():
        raise NotFound(f"there is no job {job_id!r} in {settings.folders.jobs}")
    return _chosen(settings.folders.job(job_id), cell)


def _of_mlflow(run_id: str, settings: Settings) -> RunFolder:
    try:
        tags = tags_of(settings.tracking_uri, run_id)
    except TrackerRefused as error:
        raise NotFound(f"MLflow knows no run {run_id}: {error}") from error
    job, cell = tags.get("stoplab.job_id"), tags.get("stoplab.cell", "run")
    if job is None:
        raise NotFound(f"MLflow run {run_id} carries no stoplab.job_id")
    return _of_job(job, None if cell == PARENT else cell, settings)


def _chosen(job: JobFolder, cell: str | None) -> RunFolder:
    """The job's only run, or the one of that name."""
    names = [run.root.name for run in job.each_run()]
    if cell is None and "run" in names:
        cell = "run"
    if cell in names:
        return job.run(cell)
    first = ", ".join(names[:MOST_NAMED]) or "none yet"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    said = "name one of its runs" if cell is None else f"it has no run {cell!r}"
    raise NotFound(f"{job.root.name}: {said}, as {job.root.name}/CELL: {first}{more}")
