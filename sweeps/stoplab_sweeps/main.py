"""Run one spec of kind `sweep` or `compare`, in the foreground or inside a Ray job.

    python -m stoplab_sweeps.main SPEC.yaml [--set a.b=value]...

The job's folder is the one of `STOPLAB_JOB_ID`, or a new one below `STOPLAB_HOME`; started again
with the same id, it goes on with what is left. Exit codes are those of `stoplab_platform.exits`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from stoplab_platform import logs
from stoplab_platform.errors import DataError, SettingsError, SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.handoff import request_stop
from stoplab_platform.ids import new_job_id
from stoplab_platform.jobs.models import Intent
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs import ComparisonSpec, SweepSpec, load_spec, parse_assignments
from stoplab_sweeps.cells import Start, StudySpec, train
from stoplab_sweeps.study import run_study
from stoplab_sweeps.tuning import run_in_tune

log = logging.getLogger("stoplab")


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, run, and say how it ended."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_sweeps.main", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", dest="changes")
    options = parser.parse_args(arguments)
    logs.to_stdout()
    try:
        spec = load_spec(options.spec, parse_assignments(options.changes))
        if not isinstance(spec, SweepSpec | ComparisonSpec):
            raise SpecError.of("kind", "give a spec of kind sweep or compare to this command")
        settings = Settings()
        Secrets(settings).hide_those_in(spec.plain())
        start = _start(settings)
        log.info("job %s  %s", start.job_id, start.folder.root)
        with _interruptible(start):
            code = run_study(spec, start, schedule=run_in_tune, execute=train)
    except (SpecError, DataError, SettingsError) as error:
        log.error("%s", error)
        return Exit.BAD_INPUT
    except Exception:
        log.exception("failed")
        return Exit.FAILED
    _say_how_to_go_on(spec, start, code)
    return code


def _start(settings: Settings) -> Start:
    job_id = settings.job_id or new_job_id()
    folder = settings.folders.job(job_id)
    folder.root.mkdir(parents=True, exist_ok=True)
    if settings.attempt is None:
        folder.stop.unlink(missing_ok=True)  # nobody but an earlier start of ours wrote it
    # Trial processes name themselves by the environment as well.
    os.environ["STOPLAB_HOME"] = str(settings.home)
    os.environ["STOPLAB_JOB_ID"] = job_id
    return Start(job_id, folder, settings.attempt or 1, settings.tracking_uri)


@contextmanager
def _interruptible(start: Start) -> Iterator[None]:
    """Ctrl-C asks the runs to save and end; a second one does not wait for them."""

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.warning("stopping: the runs save and end; Ctrl-C again does not wait")
        request_stop(start.folder, start.attempt, Intent.CANCELLED)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say_how_to_go_on(spec: StudySpec, start: Start, code: Exit) -> None:
    if code is Exit.OK:
        log.info("%s is done  %s", spec.name, start.folder.root)
    elif code is Exit.STOPPED:
        log.info("stopped; its runs are saved")
        if Settings().attempt is None:  # else whoever started this attempt knows better
            log.info("STOPLAB_JOB_ID=%s and the same command go on with it", start.job_id)
    else:
        log.error("%s failed; finished runs are kept in %s", spec.name, start.folder.root)


if __name__ == "__main__":
    sys.exit(main())
