"""The watchdog of one rank: what it ends, what it lets be, and what it leaves to read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import RunFolder
from stoplab_trainers.roll import hung
from support_runs import folder
from support_store import wait_for

LIMIT_S = 1.0
DEADLINE_S = 240.0
BEGIN = f"""
import logging, sys, threading
from pathlib import Path
from stoplab_platform.paths import RunFolder
from stoplab_trainers.loop import StepReport, World
from stoplab_trainers.watchdog import Watchdog

folder = RunFolder(Path(sys.argv[1]))
folder.logs.mkdir()
logging.basicConfig(filename=folder.rank_log(0))
watchdog = Watchdog(folder, World(), {LIMIT_S})
still = threading.Event()

def step(number):
    watchdog(None, StepReport(number, 9, 0, False, 0.01, {{}}))

with watchdog, watchdog.training(0):
    step(1)
"""
HANGS = "    still.wait()"
EVALUATES_AND_STEPS = f"""
    watchdog.patiently(lambda run, report: still.wait({4 * LIMIT_S}))(None, None)
    number = 2
    while not still.wait(0.01):
        step(number)
        number += 1
"""
UNMET = f"""
import logging, sys, threading
from pathlib import Path
import torch.distributed as dist
from stoplab_platform.paths import RunFolder
from stoplab_trainers.loop import World
from stoplab_trainers.watchdog import Watchdog

folder, rank = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
meet = f"file://{{folder.root}}/meet"
dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
if rank == 0:
    threading.Event().wait()
folder.logs.mkdir()
logging.basicConfig(filename=folder.rank_log(rank))
with Watchdog(folder, World(rank, 2), {LIMIT_S}):
    pass
"""

STARTS = f"""
import logging, sys, threading
from pathlib import Path
import torch.distributed as dist
from stoplab_trainers.loop import World
from stoplab_trainers.rank import run_rank
from stoplab_trainers.watchdog import Watchdog
from support_runs import folder, identity, tiny

root, rank = Path(sys.argv[1]), int(sys.argv[2])
run = folder(root.parent, root.name)
dist.init_process_group("gloo", init_method=f"file://{{root}}/meet", rank=rank, world_size=2)
run.logs.mkdir(exist_ok=True)
logging.basicConfig(filename=run.rank_log(rank))
with Watchdog(run, World(rank, 2), {LIMIT_S} if rank == 0 else None) as watchdog:
    if rank == 1:
        threading.Event().wait()
    run_rank(tiny(evals=[]), run, identity(), World(rank, 2), watchdog)
"""


@contextmanager
def process(run: RunFolder, body: str, rank: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A rank that does so; it is ended with the block."""
    command = [sys.executable, "-c", body, str(run.root), str(rank)]
    one = subprocess.Popen(command, cwd=Path(__file__).parent.parent)  # for the tests' own modules
    try:
        yield one
    finally:
        one.kill()
        one.wait()


def test_a_rank_that_stands_still_ends_itself_and_leaves_its_stacks(tmp_path: Path) -> None:
    run = folder(tmp_path)
    with process(run, BEGIN + HANGS) as rank:
        assert rank.wait(DEADLINE_S) == Exit.HUNG
    log = run.rank_log(0).read_text()
    assert "Hung: rank 0 finished no step for 1 s (at most 1 s, compute.hang_timeout_s)" in log
    assert "rank 0 after step 1" in log
    assert "most recent call first" in log
    assert "in wait" in log
    assert read_json(run.hung)["group"] == 1


def test_ranks_that_never_meet_end_as_well(tmp_path: Path) -> None:
    run = folder(tmp_path)
    write_json(run.group, {"group": 1, "token": "of the rank that is silent"})
    with process(run, UNMET, 0), process(run, UNMET, 1) as waits:
        assert waits.wait(DEADLINE_S) == Exit.HUNG
    assert "nothing has come through from the other workers yet" in str(hung(run))
    assert "broadcast_object_list" in run.rank_log(1).read_text()


def test_a_rank_that_never_comes_to_its_first_step_is_not_waited_for(tmp_path: Path) -> None:
    """As one whose data never open: its heart beats, and the other one waits to begin."""
    run = folder(tmp_path)
    with process(run, STARTS, 1), process(run, STARTS, 0) as waits:
        assert waits.wait(DEADLINE_S) == Exit.HUNG
    told = str(hung(run))
    assert "(at most 5 s, compute.hang_timeout_s)" in told
    assert "rank 1 after step 0" in told


def test_only_steps_count_and_others_may_take_the_run(tmp_path: Path) -> None:
    run = folder(tmp_path)
    with process(run, BEGIN + EVALUATES_AND_STEPS) as rank:
        _until(run, lambda beat: beat["step"] > 1, "it has evaluated for four limits")
        # As with Ctrl-Z: it has not waited meanwhile.
        os.kill(rank.pid, signal.SIGSTOP)
        stood, until = read_json(run.beat(0))["count"], time.monotonic() + 3 * LIMIT_S
        wait_for(lambda: time.monotonic() > until, "three limits")
        os.kill(rank.pid, signal.SIGCONT)
        write_json(run.group, {"group": 0, "token": "an old view"})
        _until(run, lambda beat: beat["count"] > stood + 3, "it goes on")
        write_json(run.group, {"group": 2, "token": "newer"})
        assert rank.wait(DEADLINE_S) == Exit.FENCED
    assert not run.hung.exists()


def _until(run: RunFolder, true: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Wait for a heartbeat of the rank."""
    wait_for(lambda: (beat := read_json(run.beat(0))) and true(beat), what, DEADLINE_S)
