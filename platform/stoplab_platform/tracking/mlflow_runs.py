"""Runs in MLflow, by its client and explicit ids: the only file that talks to MLflow.

MLflow takes 2 to 3 s to import, so it is imported where it is first used: in the sending thread.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from stoplab_platform.errors import TrackerRefused, TrackerUnavailable
from stoplab_platform.tracking.base import RunIdentity, Status, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# MLflow's own limits (mlflow/utils/validation.py@v3.17).
MOST_METRICS, MOST_WORDS = 1000, 100
MOST_PARAM, MOST_TAG = 6000, 8000
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
SQLITE = "sqlite:///"
PROXIED = "mlflow-artifacts:"
PARENT = "parent"  # the value of `stoplab.cell` of a study's own run

# A client that retries for minutes would hang on to a thread; we come again ourselves.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Opened(NamedTuple):
    """A run and the experiment that it is in."""

    run_id: str
    experiment_id: str


def client(uri: str) -> MlflowClient:
    """A client of the store at ``uri``; a SQLite store is made where there is none.

    Raises TrackerUnavailable.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    with _answers():
        from mlflow import MlflowClient

        # It announces each table that it makes.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        if not uri.startswith(SQLITE):
            return MlflowClient(tracking_uri=uri)
        database = Path(uri.removeprefix(SQLITE))
        database.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that make the tables at once break each other.
        with FileLock(database.with_suffix(".lock")):
            return MlflowClient(tracking_uri=uri)


def answers(uri: str) -> bool:
    """Whether the store at ``uri`` answers at all."""
    try:
        with _answers():
            client(uri).search_experiments(max_results=1)
    except TrackerUnavailable:
        return False
    return True


def create_parent(uri: str, identity: RunIdentity, params: Mapping[str, Any]) -> Opened:
    """A study's own run, made unless it is there, with the study's runs below it.

    Called again it takes in the runs that were made while there was no parent. Raises
    TrackerUnavailable.
    """
    runs = Runs(uri)
    tags = {**identity.as_tags(), "stoplab.cell": PARENT}
    line = {"experiment": identity.experiment, "tags": tags, "params": flatten(params)}
    parent = runs.open(line)
    with _answers():
        for run in runs.of_job(identity.job_id):
            orphan = "mlflow.parentRunId" not in run.data.tags
            if orphan and run.info.run_id != parent.run_id:
                runs.client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.run_id)
    return parent


def finish_runs(uri: str, job_id: str, status: Status) -> int:
    """Give ``status`` to every run of a job that is still RUNNING; how many there were.

    Raises TrackerUnavailable.
    """
    runs = Runs(uri)
    with _answers():
        running = list(runs.of_job(job_id, "attributes.status = 'RUNNING'"))
        for run in running:
            runs.client.set_terminated(run.info.run_id, status)
    return len(running)


def history(
    uri: str, run_id: str, names: Sequence[str]
) -> Mapping[str, Sequence[tuple[int, float, int]]]:
    """Step, value and time (ms) of every point of some metrics of a run.

    Raises TrackerUnavailable.
    """
    store = client(uri)
    with _answers():
        found = {name: store.get_metric_history(run_id, _word(name)) for name in names}
    return {name: [(m.step, m.value, m.timestamp) for m in found[name]] for name in names}


def last_values(uri: str, run_id: str) -> Mapping[str, float]:
    """The last value of each metric of a run. Raises TrackerUnavailable."""
    store = client(uri)
    with _answers():
        found: Mapping[str, float] = store.get_run(run_id).data.metrics
    return found


def tags_of(uri: str, run_id: str) -> Mapping[str, str]:
    """A run's tags. Raises TrackerUnavailable, TrackerRefused where there is no such run."""
    store = client(uri)
    with _answers():
        found: Mapping[str, str] = store.get_run(run_id).data.tags
    return found


class Runs:
    """The spool's lines, done to runs. Every verb may be repeated.

    Raises TrackerUnavailable, and TrackerRefused for what no repetition will change.
    """

    def __init__(self, uri: str) -> None:
        self.client = client(uri)
        self._files: Path | None = None
        """A SQLite store's files: beside it (and not in the working folder, as MLflow has it)."""
        if uri.startswith(SQLITE):
            self._files = Path(uri.removeprefix(SQLITE)).absolute().parent / "artifacts"

    def open(self, line: Mapping[str, Any]) -> Opened:
        """The run that the line's tags name, made unless it is there."""
        tags = {name: value[:MOST_TAG] for name, value in line["tags"].items()}
        with _answers():
            same_cell = f"tags.`stoplab.cell` = '{tags['stoplab.cell']}'"
            found = next(self.of_job(tags["stoplab.job_id"], same_cell), None)
            if found is None:
                experiment = self._experiment(line["experiment"])
                found = self.client.create_run(experiment, line.get("at"), tags)
            self._log_params(found.info.run_id, line["params"])
        return Opened(found.info.run_id, found.info.experiment_id)

    def of_job(self, job_id: str, *conditions: str) -> Iterator[Run]:
        """A job's runs, wherever they are."""
        where = " and ".join((f"tags.`stoplab.job_id` = '{job_id}'", *conditions))
        everywhere = [
            experiment.experiment_id for experiment in _pages(self.client.search_experiments)
        ]
        yield from _pages(self.client.search_runs, experiment_ids=everywhere, filter_string=where)

    def apply(self, run_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Do one line, or several lines of metrics."""
        line = lines[0]
        with _answers():
            match line["verb"]:
                case "metrics":
                    self._log_metrics(run_id, lines)
                case "tags" | "resume":
                    self._set_tags(run_id, line["tags"])
                    if line["verb"] == "resume":
                        self.client.update_run(run_id, "RUNNING")
                case "artifact":
                    self._log_artifact(run_id, Path(line["path"]), line["folder"])
                case "finish":
                    self.client.set_terminated(run_id, line["status"], line["at"])

    def _experiment(self, name: str) -> str:
        """Id of an experiment; several processes may ask for a new one at once."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, self._artifacts(name)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return self._experiment(name)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _artifacts(self, experiment: str) -> str | None:
        """Where a new experiment of a SQLite store keeps files; None: a server decides it."""
        if self._files is None:
            return None
        return str(self._files / _word(experiment).replace("/", "_"))

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for part in _parts(params.items(), MOST_WORDS):
            self.client.log_batch(run_id, params=[Param(_word(k), v[:MOST_PARAM]) for k, v in part])

    def _log_metrics(self, run_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        points = (
            Metric(_word(name), value, line["at"], line["step"])
            for line in lines
            for name, value in line["values"].items()
        )
        for part in _parts(points, MOST_METRICS):
            self.client.log_batch(run_id, metrics=part)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for part in _parts(tags.items(), MOST_WORDS):
            self.client.log_batch(run_id, tags=[RunTag(_word(k), v[:MOST_TAG]) for k, v in part])

    def _log_artifact(self, run_id: str, path: Path, folder: str) -> None:
        if not path.exists():
            raise TrackerRefused(f"{path} is gone")
        root = self.client.get_run(run_id).info.artifact_uri
        if self._files is None or not root.startswith(PROXIED):
            self.client.log_artifact(run_id, str(path), folder or None)
            return
        # The experiment was made by the server of this store, which is not running now.
        place = self._files / root.removeprefix(PROXIED).lstrip("/") / folder
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


@contextmanager
def _answers() -> Iterator[None]:
    """Turns what MLflow and its store raise into our own errors."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        refused = error.error_code in REFUSALS
        raise (TrackerRefused if refused else TrackerUnavailable)(_first_line(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise TrackerUnavailable(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _word(text: str) -> str:
    """A key that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", text)


def _parts(items: Iterable[Any], most: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(islice(iterator, most)):
        yield part


def _pages(search: Any, **words: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**words, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
