"""The only owner of file names: a lab's home, a job's folder, a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT_MANIFEST = "manifest.json"
"""The file by which a folder is a checkpoint."""


@dataclass(frozen=True)
class RunFolder:
    """One pretraining run's files, below a job's folder."""

    root: Path

    @property
    def spec(self) -> Path:
        """The run's spec, resolved."""
        return self.root / "spec.yaml"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.root / "checkpoints"

    @property
    def elsewhere(self) -> Path:
        """Present where checkpoints lie elsewhere: the places, its own and adopted ones."""
        return self.root / "checkpoints.json"

    @property
    def spool(self) -> Path:
        """What goes to the tracker, a line each, in order."""
        return self.root / "spool.jsonl"

    @property
    def spool_sent(self) -> Path:
        """How much of the spool the tracker has, and under which run id."""
        return self.root / "spool.sent.json"

    @property
    def spool_lock(self) -> Path:
        """Held by whoever sends the spool."""
        return self.root / "spool.lock"

    @property
    def artifacts(self) -> Path:
        """Pictures and files that also go to the tracker."""
        return self.root / "artifacts"

    @property
    def progress(self) -> Path:
        """Step, steps, epoch, eta_s, samples_per_s; replaced as the run goes on."""
        return self.root / "progress.json"

    @property
    def last(self) -> Path:
        """What was measured at the run's last step, for whoever goes on from there."""
        return self.root / "last.json"

    @property
    def group(self) -> Path:
        """Number and token of the newest group of workers that took the run on."""
        return self.root / "group.json"

    @property
    def news(self) -> Path:
        """What the run last said of its workers: attempt, message."""
        return self.root / "news.json"

    def beat(self, rank: int) -> Path:
        """A counter that the living rank raises: group, count, step, training, host, pid."""
        return self.root / "beats" / f"rank-{rank}.json"

    @property
    def hung(self) -> Path:
        """Present when a group of workers ended because no step came: its number, message."""
        return self.root / "hung.json"

    @property
    def alarm(self) -> Path:
        """Present when something is wrong with a run that goes on (collapsed, drifted, starved):
        kind, step, measure, value, start, best, message, and what was told `earlier`."""
        return self.root / "alarm.json"

    @property
    def divergence(self) -> Path:
        """Present when a run's loss was no number: what is known of the steps that led there."""
        return self.root / "divergence.json"

    @property
    def summary(self) -> Path:
        """Final metrics, digests and certificate of a run that ended well."""
        return self.root / "summary.json"

    @property
    def predictions(self) -> Path:
        """What the final evaluations told of each test image, by metric, and its true label."""
        return self.root / "predictions.json"

    @property
    def evaluation(self) -> Path:
        """The final evaluations with intervals: a list of `scorebook.Score`."""
        return self.root / "evaluation.json"

    @property
    def scores(self) -> Path:
        """Scheduled evaluations as JSON lines: epoch (ended ones), step, at (ms), values."""
        return self.root / "scores.jsonl"

    @property
    def prune(self) -> Path:
        """Present when a sweep's scheduler ended this run early."""
        return self.root / "prune.json"

    @property
    def leave(self) -> Path:
        """A stop file of the launcher's own: it asks the workers to save and end, and why."""
        return self.root / "leave.json"

    def place(self, rank: int) -> Path:
        """Which node a rank is on."""
        return self.root / "places" / f"{rank}.json"

    @property
    def bad_samples(self) -> Path:
        """Folder of a file a rank that met samples which cannot be read: JSON lines."""
        return self.root / "bad_samples"

    @property
    def logs(self) -> Path:
        """Folder of the ranks' logs."""
        return self.root / "logs"

    def rank_log(self, rank: int) -> Path:
        """What one rank wrote."""
        return self.logs / f"rank-{rank}.log"


@dataclass(frozen=True)
class JobFolder:
    """One job's files, on a file system that the API and every node see."""

    root: Path

    @property
    def spec(self) -> Path:
        """The job's spec as YAML."""
        return self.root / "spec.yaml"

    @property
    def owner(self) -> Path:
        """Number of the attempt that owns this folder (the fence)."""
        return self.root / "owner.json"

    def claim(self, attempt: int) -> Path:
        """Created, exclusively, by the one process that is this attempt."""
        return self.root / "attempts" / str(attempt)

    def mark(self, attempt: int) -> Path:
        """Left by whoever gave the folder to an attempt; marks only ever become more."""
        return self.root / "owners" / str(attempt)

    @property
    def heartbeat(self) -> Path:
        """A counter that the living attempt raises."""
        return self.root / "heartbeat.json"

    @property
    def stop(self) -> Path:
        """Present when somebody asked the job to stop: intent and deadline."""
        return self.root / "stop.json"

    @property
    def result(self) -> Path:
        """How the last attempt ended, in its supervisor's words."""
        return self.root / "result.json"

    @property
    def progress(self) -> Path:
        """How far a study is, in cells; a pretraining job's lies in its run's folder."""
        return self.root / "progress.json"

    @property
    def limits(self) -> Path:
        """What holds of a job's limits beside its spec: a study's driver obeys."""
        return self.root / "limits.json"

    @property
    def origin(self) -> Path:
        """The job that this one goes on from: retry_of, extends."""
        return self.root / "origin.json"

    @property
    def tracked(self) -> Path:
        """A study's parent run in the tracker: run_id, experiment_id."""
        return self.root / "tracked.json"

    @property
    def comparison(self) -> Path:
        """A comparison's result."""
        return self.root / "comparison.json"

    @property
    def comparison_page(self) -> Path:
        """A comparison's result as Markdown."""
        return self.root / "comparison.md"

    @property
    def comparison_html(self) -> Path:
        """A comparison's result as a page with plots, in one file."""
        return self.root / "comparison.html"

    @property
    def comparison_png(self) -> Path:
        """A comparison's result as one picture."""
        return self.root / "comparison.png"

    @property
    def comparison_tex(self) -> Path:
        """A comparison's result as a LaTeX table."""
        return self.root / "comparison.tex"

    @property
    def surface(self) -> Path:
        """A sweep's response surface, or why there is none."""
        return self.root / "surface.json"

    @property
    def surface_html(self) -> Path:
        """A sweep's response surface as a page with plots, in one file."""
        return self.root / "surface.html"

    @property
    def surface_png(self) -> Path:
        """A sweep's response surface as one picture."""
        return self.root / "surface.png"

    @property
    def trials(self) -> Path:
        """A study's ledger as CSV."""
        return self.root / "trials.csv"

    @property
    def trials_parquet(self) -> Path:
        """A study's ledger as Parquet."""
        return self.root / "trials.parquet"

    @property
    def tune(self) -> Path:
        """What Ray Tune keeps while a study runs; nothing goes back to it."""
        return self.root / "tune"

    @property
    def cells(self) -> Path:
        """The ledger: one file a cell."""
        return self.root / "cells"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.root / "runs"

    @property
    def logs(self) -> Path:
        """Folder of the driver's log."""
        return self.root / "logs"

    @property
    def driver_log(self) -> Path:
        """What the driver wrote, over all attempts."""
        return self.logs / "driver.log"

    def rank_log(self, rank: int) -> Path:
        """What one rank of a pretraining job wrote, over all attempts."""
        return self.run("run").rank_log(rank)

    def run(self, name: str) -> RunFolder:
        """A run's folder; a pretraining job's only run is named ``run``."""
        return RunFolder(self.runs / name)

    def each_run(self) -> Iterator[RunFolder]:
        """All runs that have a folder, by name."""
        if self.runs.is_dir():
            for root in sorted(self.runs.iterdir()):
                yield RunFolder(root)


@dataclass(frozen=True)
class Home:
    """A lab's folder."""

    root: Path
    cache_dir: Path | None = None
    """Where the cache lies, if not in the lab's folder."""

    @property
    def database(self) -> Path:
        """The store (SQLite)."""
        return self.root / "stoplab.db"

    @property
    def mlflow(self) -> Path:
        """MLflow's store and artifacts."""
        return self.root / "mlflow"

    @property
    def mlflow_database(self) -> Path:
        """MLflow's store (SQLite)."""
        return self.mlflow / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Root of MLflow's artifacts."""
        return self.mlflow / "artifacts"

    @property
    def cache(self) -> Path:
        """What can be made again: embedded sets, unpacked shards, indexes."""
        return self.cache_dir or self.root / "cache"

    @property
    def jobs(self) -> Path:
        """One folder a job."""
        return self.root / "jobs"

    @property
    def token_file(self) -> Path:
        """The local user's API token (0600)."""
        return self.root / "tokens" / "local"

    @property
    def ray_token_file(self) -> Path:
        """Ray's token (0600)."""
        return self.root / "tokens" / "ray"

    @property
    def all_secrets(self) -> Path:
        """A folder for each project's secrets."""
        return self.root / "secrets"

    def secrets(self, project: str) -> Path:
        """A project's secrets, a file each (0600)."""
        return self.all_secrets / project

    @property
    def lab(self) -> Path:
        """The running lab: addresses and process ids."""
        return self.root / "lab.json"

    @property
    def logs(self) -> Path:
        """Logs of the lab's own servers."""
        return self.root / "logs"

    def server_log(self, part: str) -> Path:
        """Log of one of the lab's servers."""
        return self.logs / f"{part}.log"

    @property
    def lab_lock(self) -> Path:
        """Held while somebody starts or ends the lab."""
        return self.root / "lab.lock"

    def job(self, job_id: str) -> JobFolder:
        """A job's folder."""
        return JobFolder(self.jobs / job_id)
