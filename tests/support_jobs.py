"""A lab's inside for tests: a store, a runner, a reconciler in a thread, and a small trainer."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from stoplab_platform.decide import Patience
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import JobFolder
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.base import Runner
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from support_store import ADMIN, lab_settings, open_store, run_spec, wait_for

QUICK = Patience(quiet_s=0.5, still_s=1.5, back_off=0.1)

TRAINER = """
import fcntl, os, sys, time, pathlib
folder = pathlib.Path(os.environ["STOPLAB_HOME"], "jobs", os.environ["STOPLAB_JOB_ID"])
alone = open(folder / "alone", "w")
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit("two attempts at once")
steps, total, more = folder / "steps", *map(int, sys.argv[1:])
done = int(steps.read_text()) if steps.exists() else 0
print("attempt", os.environ["STOPLAB_ATTEMPT"], "from", done, "pid", os.getpid(), flush=True)
while done < total:
    more -= (folder / "stop.json").exists()
    if more < 0:
        print("saved", done, flush=True)
        sys.exit(75)
    time.sleep(0.02)
    done += 1
    draft = folder / "steps.draft"
    draft.write_text(str(done))
    draft.replace(steps)
"""
"""Counts steps of 20 ms up to its argument, saves each, obeys the stop file after some more;
fails where another one is at it."""


def trainer(steps: int, more: int = 0) -> tuple[str, ...]:
    """The command of a run of so many steps; it makes ``more`` of them before it stops."""
    return (sys.executable, "-c", TRAINER, str(steps), str(more))


def script(code: str) -> tuple[str, ...]:
    """The command of a Python program."""
    return (sys.executable, "-c", code)


DEAF = script(
    "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "folder = pathlib.Path(os.environ['STOPLAB_HOME'], 'jobs', os.environ['STOPLAB_JOB_ID']);"
    "(folder / 'steps').write_text('7');"
    "print('attempt', os.environ['STOPLAB_ATTEMPT'], 'from 0 pid', os.getpid(), flush=True);"
    "time.sleep(600)"
)
"""A run that obeys nothing but SIGKILL."""


@dataclass
class Lab:
    """What a test asks and looks at."""

    store: JobStore
    settings: Settings
    runner: Runner
    reconciler: Reconciler
    jobs: Jobs

    def submit(self, name: str = "bar", **changes: Any) -> Job:
        """A small pretraining job."""
        return self.jobs.submit(ADMIN, run_spec(name, **changes)).job

    def job(self, job: Job) -> Job:
        """The job as it is now."""
        return self.store.get(job.id)

    def wait(self, job: Job, state: State, timeout_s: float = 40) -> Job:
        """The job once it is in ``state``."""
        wait_for(lambda: self.job(job).state is state, f"{state}", timeout_s)
        return self.job(job)

    def folder(self, job: Job) -> JobFolder:
        """Its files."""
        return self.settings.folders.job(job.id)

    def log(self, job: Job) -> str:
        """What its driver wrote."""
        path = self.folder(job).driver_log
        return path.read_text() if path.exists() else ""

    def pid(self, job: Job, attempt: int = 1) -> int:
        """The trainer's pid in an attempt."""
        line = rf"attempt {attempt} from \d+ pid (\d+)\n"
        return int(wait_for(lambda: re.search(line, self.log(job)), "the trainer", 40)[1])

    def states(self, job: Job) -> list[str]:
        """Its history."""
        return [str(event.to_state) for event in self.store.history(job.id)]

    def steps(self, job: Job) -> int:
        """How far the trainer came."""
        path = self.folder(job).root / "steps"
        return int(path.read_text()) if path.exists() else 0


@contextmanager
def running_lab(
    home: Path,
    command: tuple[str, ...],
    *,
    runner: Runner | None = None,
    patience: Patience = QUICK,
    cpus: float = 4,
    store: JobStore | None = None,
    tracking_uri: str | None = None,
    **declared: Any,
) -> Iterator[Lab]:
    """A lab whose reconciler runs until the block ends; then what still trains is killed.

    ``declared`` are further settings.
    """
    settings = lab_settings(home, tracking_uri, capacity_cpus=cpus, **declared)
    with open_store(settings.database) as own:
        store = store or own
        runner = runner or LocalRunner(home / "runner")
        reconciler = Reconciler(store, runner, settings, patience=patience, command=command)
        jobs = Jobs(store, settings, reconciler.waiting, reconciler.wake)
        with reconciling(reconciler):
            yield Lab(store, settings, runner, reconciler, jobs)
        kill_supervisors(home)


@contextmanager
def reconciling(reconciler: Reconciler) -> Iterator[None]:
    """Its thread."""
    stop = threading.Event()
    thread = threading.Thread(target=reconciler.run_forever, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        reconciler.wake()
        thread.join(30)
        assert not thread.is_alive()


def supervisors(home: Path, job_id: str = "") -> list[psutil.Process]:
    """Living supervisors of a home (of one job)."""
    return _processes(
        lambda p: (
            "stoplab_platform.supervisor" in p.cmdline()
            and p.environ().get("STOPLAB_HOME") == str(home)
            and job_id in p.cmdline()[4]
        )
    )


def kill_supervisors(home: Path) -> None:
    """End them; each takes its child along."""
    left = supervisors(home)
    for process in left:
        with suppress(psutil.NoSuchProcess):  # it was about to end
            process.kill()
    psutil.wait_procs(left, timeout=5)


def gone(pid: int) -> bool:
    """Whether nothing of a process is alive."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _processes(wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if wanted(process):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found
