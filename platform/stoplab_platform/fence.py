"""The fence: at any time one attempt owns a job's folder, and older ones end themselves."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil

from stoplab_platform.errors import Fenced
from stoplab_platform.files import read_json, write_json
from stoplab_platform.handoff import read_heartbeat
from stoplab_platform.paths import JobFolder

log = logging.getLogger("stoplab.supervisor")

SILENCE_S, SILENCE_TRIES = 1.5, 20


def owner(folder: JobFolder) -> int:
    """The attempt that owns the folder; 0 when none does."""
    data = read_json(folder.owner)
    return 0 if data is None else int(data["attempt"])


def is_fenced(folder: JobFolder, attempt: int) -> bool:
    """Whether a newer attempt owns the folder."""
    return owner(folder) > attempt


def own(folder: JobFolder, attempt: int) -> None:
    """Give the folder to an attempt; Fenced when a newer one has it.

    Two may do so at once, so each leaves a mark before it writes, and looks for higher ones after:
    who writes last puts the highest number back. Ownership never goes down for longer than that.
    """
    newest = owner(folder)
    if newest < attempt:
        mark = folder.mark(attempt)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        newest = attempt
        while newest != owner(folder):
            write_json(folder.owner, {"attempt": newest})
            newest = max(int(other.name) for other in mark.parent.iterdir())
    if newest > attempt:
        raise Fenced(f"attempt {newest} owns {folder.root}; attempt {attempt} ends")


def claim_attempt(folder: JobFolder, attempt: int) -> None:
    """Become the one process of an attempt; Fenced when there was one already."""
    path = folder.claim(attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        raise Fenced(f"attempt {attempt} of {folder.root} was started before") from None


def bury(folder: JobFolder, job_id: str, attempt: int) -> bool:
    """Kill what older attempts left on this machine; whether their heartbeat is still by now."""
    for process in _older(job_id, attempt):
        log.warning("killing process %d, left by an older attempt", process.pid)
        with suppress(psutil.Error):
            process.kill()
    last = read_heartbeat(folder)
    if last is None or last.attempt >= attempt:
        return True
    for _ in range(SILENCE_TRIES):
        time.sleep(SILENCE_S)
        now = read_heartbeat(folder)
        if now == last:
            return True
        last = now
    return False


def _older(job_id: str, attempt: int) -> Iterator[psutil.Process]:
    """Processes of this user whose environment names the job and a lower attempt."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ValueError):
            env = process.environ()
            if env.get("STOPLAB_JOB_ID") == job_id and int(env["STOPLAB_ATTEMPT"]) < attempt:
                yield process
