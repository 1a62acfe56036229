"""What happens beside the steps of a run: numbers out, evaluations, checkpoints, stops."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stoplab_platform.errors import Fenced, Stopped
from stoplab_platform.files import add_line, read_json, read_lines, write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import Tracker
from stoplab_trainers import checkpoint
from stoplab_trainers.evals.outcome import spelled
from stoplab_trainers.loop import Run, StepReport
from stoplab_trainers.notice import PREEMPTED
from stoplab_trainers.scores import Scores
from stoplab_trainers.writing import Writer

log = logging.getLogger("stoplab.train")

Progress = dict[str, Any]
OnScores = Callable[[int, Mapping[str, float]], None]
"""Hears of each scheduled evaluation: epochs that have ended, validation scores."""
QUIET_S = 5.0  # seconds between two lines of a run's log
PROGRESS_S = 0.5  # seconds between two writes of progress.json
GO_ON, LEAVE, END, LOST = range(4)  # what a look at notice, stop files and owner tells
FENCE_S = 1.0  # seconds between two looks at who owns the job's folder


class Reporting:
    """Sends the metrics of logged steps to the tracker, and a line to the log now and then.

    Also how many samples could not be read: too many of all ranks together end the run.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._spoke_at = float("-inf")

    def __call__(self, run: Run, report: StepReport) -> None:
        """Report one step, if it was measured."""
        if not report.metrics:
            return
        bad = float(run.bad.total())  # of all ranks
        beside = {"data/bad_samples": bad, "train/workers": float(run.world.size)}
        self._tracker.metrics(report.step, {**report.metrics, **beside})
        run.bad.check()
        now = time.monotonic()
        if now - self._spoke_at >= QUIET_S or report.step == report.steps:
            self._spoke_at = now
            log.info(
                "step %d/%d  epoch %d  loss %.4f  lr %.2e  %.0f images/s",
                report.step,
                report.steps,
                report.epoch,
                report.metrics["train/loss"],
                report.metrics["train/lr"],
                report.metrics["train/samples_per_s"],
            )


class ProgressFile:
    """Keeps progress.json young, for whoever watches the job."""

    def __init__(self, folder: RunFolder, also: Callable[[Progress], None] | None) -> None:
        self._folder, self._also = folder, also
        self._wrote_at = float("-inf")
        self._seconds = 0.0  # of a step, as a moving mean

    def __call__(self, run: Run, report: StepReport) -> None:
        """Write where the run stands, at most twice a second."""
        weight = 1.0 if self._seconds == 0 else 0.1
        self._seconds += weight * (report.seconds - self._seconds)
        now = time.monotonic()
        if now - self._wrote_at < PROGRESS_S and report.step < report.steps:
            return
        self._wrote_at = now
        progress = {
            "step": report.step,
            "steps": report.steps,
            "epoch": report.epoch,
            "eta_s": round((report.steps - report.step) * self._seconds, 1),
            "samples_per_s": round(run.spec.optim.batch_size / max(self._seconds, 1e-9), 1),
            "warning": (read_json(self._folder.alarm) or {}).get("message"),
        }
        write_json(self._folder.progress, progress)
        if self._also:
            self._also(progress)


class Evaluating:
    """Runs the scheduled protocols on the validation split at the ends of epochs."""

    def __init__(
        self, scores: Scores, tracker: Tracker, file: Path, also: OnScores | None = None
    ) -> None:
        self._scores, self._tracker = scores, tracker
        self._file, self._also = file, also

    def __call__(self, run: Run, report: StepReport) -> None:
        """Evaluate what is due; the last epoch is left to the final evaluation."""
        if report.ends_epoch:
            self._evaluate(run)

    def catch_up(self, run: Run) -> None:
        """Evaluate the epoch that a run goes on after, if it ended before that was done."""
        epochs = [line["epoch"] for line in read_lines(self._file)]
        whole = run.step % run.plan.steps_per_epoch == 0
        if run.step and whole and run.step // run.plan.steps_per_epoch not in epochs:
            self._evaluate(run)

    def _evaluate(self, run: Run) -> None:
        epochs = run.step // run.plan.steps_per_epoch
        due = [one for one in run.spec.evals if one.every_epochs and epochs % one.every_epochs == 0]
        if not due or run.step == run.last_step:
            return
        values = self._scores.of(run.target, due, on="val")
        self._tracker.metrics(run.step, values)
        log.info("epoch %d  %s", epochs - 1, spelled(values))
        self._leave(epochs, run.step, values)
        if self._also:
            self._also(epochs, values)

    def _leave(self, epochs: int, step: int, values: Mapping[str, float]) -> None:
        """A line for a sweep's scheduler; a repeated epoch has a second line, which counts."""
        line = {"epoch": epochs, "step": step, "at": int(time.time() * 1000)}
        add_line(self._file, {**line, "values": values})


class Saving:
    """Checkpoints by the spec's schedule, and always at the last step.

    Every rank has one, for the state is gathered from all; rank 0 writes it, beside the training,
    and tells the tracker how long that took. As a context it lets the write end before the run
    does, however that ends. ``patience``: a context in which a slow store is waited for.
    ``fenced``: as for `Stopping`, which ends the run; until then nothing is written, for what lies
    there half done may be the newer attempt's.
    """

    def __init__(
        self,
        folder: RunFolder,
        identity: Mapping[str, str],
        tracker: Tracker | None = None,
        patience: Callable[[], AbstractContextManager[None]] = nullcontext,
        fenced: Callable[[], bool] = lambda: False,
    ) -> None:
        self._writer = Writer(checkpoint.stores(folder), identity)
        self._tracker, self._patience, self._fenced = tracker, patience, fenced
        self.saved_step = -1

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __call__(self, run: Run, report: StepReport) -> None:
        """Save, if it is time; raises what went wrong with the last one."""
        self._writer.check()
        self._tell()
        spec = run.spec.checkpoint
        by_epoch = (
            spec.every_epochs
            and report.ends_epoch
            and ((report.epoch + 1) % spec.every_epochs == 0)
        )
        by_step = spec.every_steps and report.step % spec.every_steps == 0
        if report.step == report.steps:
            self.finish(run)
        elif by_epoch or by_step:
            self.save(run)

    def save(self, run: Run) -> None:
        """Begin to save what the run is now, unless this step is saved already."""
        if self.saved_step == run.step:
            return
        state = run.state()
        # Past a loss or a gradient that is no number, a state would only push good ones out.
        good = run.checked == run.step or bool(run.finite)
        if run.world.rank == 0 and good and not self._fenced():
            with self._patience():
                self._writer.begin(run.step, state, run.spec.checkpoint.keep)
        self.saved_step = run.step

    def finish(self, run: Run) -> None:
        """Save, and return once that is whole and on the disk."""
        self.save(run)
        with self._patience():
            self._writer.wait()
        self._tell()

    def _tell(self) -> None:
        if self._tracker is None:
            return
        for one in self._writer.ended():
            values = {"checkpoint/wait_s": one.wait_s, "checkpoint/write_s": one.write_s}
            self._tracker.metrics(one.step, values)


class Stopping:
    """Obeys stop files: rank 0 reads them, all ranks hear of it, save and end.

    So they do when any rank's ``notice`` says that its machine is taken away. ``fenced`` tells
    whether the folder is a newer attempt's: then all end, and nothing is saved.
    """

    def __init__(
        self,
        files: Sequence[Path],
        saving: Saving,
        fenced: Callable[[], bool] = lambda: False,
        notice: Callable[[], bool] = lambda: False,
    ) -> None:
        self._files, self._saving = files, saving
        self._fenced, self._notice = fenced, notice
        self._lost, self._look_at = False, 0.0

    def __call__(self, run: Run, report: StepReport) -> None:
        """Raise `Stopped` on every rank, once a file is there; the first one's intent counts."""
        heard = self._agreed(run, report)
        if heard == GO_ON:
            return
        if heard == LOST:
            raise Fenced(f"a newer attempt owns the job's folder; this one ends at {run.step}")
        self._saving.finish(run)
        wishes = [wish for wish in map(read_json, self._files) if wish is not None]
        unasked = PREEMPTED if heard == LEAVE else "CANCELLED"
        raise Stopped(str(wishes[0]["intent"]) if wishes else unasked, run.step)

    def _seen(self) -> int:
        if time.monotonic() >= self._look_at:
            self._lost, self._look_at = self._fenced(), time.monotonic() + FENCE_S
        if self._lost:
            return LOST
        return END if any(file.exists() for file in self._files) else GO_ON

    def _agreed(self, run: Run, report: StepReport) -> int:
        """The most that any rank has seen, on every rank; files are rank 0's to read."""
        several = run.world.size > 1
        # On a GPU, asking waits for the device: then only where the step was measured anyway.
        if several and run.world.device.type == "cuda" and not report.metrics:
            return GO_ON
        seen = max(self._seen() if run.world.rank == 0 else GO_ON, LEAVE * self._notice())
        if not several:
            return seen
        told = torch.tensor(float(seen), device=run.world.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told.item())
