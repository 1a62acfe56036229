"""Runs that stand still: a rank stopped, a file that never opens; noticed, and gone on from."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.fence import own
from stoplab_platform.files import read_json
from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import RunSpec
from stoplab_trainers.launch import execute
from stoplab_trainers.summary import summary_of
from support_invariants import goes_on, has_logged
from support_ledger import kill_ledger
from support_netns import Cable, cable
from support_runs import folder, identity, tiny
from support_store import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LIMIT_S = 10.0
EVERY = 5
DEADLINE_S = 900.0
RANK = """
import sys, time
from pathlib import Path
import torch.distributed as dist
from stoplab_platform.paths import RunFolder
from stoplab_platform.specs import RunSpec, load_spec
from stoplab_platform.tracking import RunIdentity
from stoplab_trainers import hooks
from stoplab_trainers.launch import rank_log
from stoplab_trainers.loop import World
from stoplab_trainers.rank import run_rank
from stoplab_trainers.watchdog import Watchdog

root, rank, takes_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
evaluate = hooks.Evaluating._evaluate

def evaluate_for_long(self, run):
    evaluate(self, run)
    time.sleep(takes_s)

hooks.Evaluating._evaluate = evaluate_for_long
dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)
spec, folder, world = load_spec(root / "spec.yaml"), RunFolder(root / "run"), World(rank, 2)
identity = RunIdentity(job_id="j_test", kind="pretrain", name="tiny", experiment="tests")
with rank_log(folder, rank), Watchdog(folder, world, spec.compute.hang_timeout_s) as watchdog:
    run_rank(spec, folder, identity, world, watchdog)
"""


def two_ranks(**changes: object) -> RunSpec:
    """A run of two workers with a short patience."""
    return tiny(
        compute={"workers": 2, "hang_timeout_s": LIMIT_S},
        checkpoint__every_epochs=None,
        checkpoint__every_steps=EVERY,
        tracking__log_every_steps=1,
        **changes,
    )


class Ranks:
    """Two ranks of a run, without Ray."""

    def __init__(
        self,
        root: Path,
        spec: RunSpec,
        evaluations_take_s: float = 0,
        over: Cable | None = None,
    ) -> None:
        """The second one at the far end of a cable, if there is one."""
        self.run = folder(root)  # which makes the root as well
        (root / "spec.yaml").write_text(spec.to_yaml())
        (root / "meet").unlink(missing_ok=True)
        under = [[], over.inside if over else []]
        env = [{"GLOO_SOCKET_IFNAME": name} for name in ((over.near, over.far) if over else ())]
        self.processes = [
            subprocess.Popen(
                [*under[rank], sys.executable, "-c", RANK, root, str(rank),
                 str(evaluations_take_s)],
                env={**os.environ, **(env[rank] if env else {})},
            )
            for rank in (0, 1)
        ]  # fmt: skip

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def test_the_other_rank_says_which_one_it_waited_for(tmp_path: Path) -> None:
    spec = two_ranks(evals=[], optim__epochs=200)
    with Ranks(tmp_path, spec) as ranks, kill_ledger("hang", "rank stopped") as ledger:
        wait_for(lambda: has_logged(ranks.run) >= 2 * EVERY, "some steps", DEADLINE_S)
        ranks.processes[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        ledger.did("rank stopped")
        assert ranks.processes[0].wait(DEADLINE_S) == Exit.HUNG
        ledger.note(f"noticed, and ended, {time.monotonic() - began:.1f} s after (limit {LIMIT_S})")
    log = ranks.run.rank_log(0).read_text()
    assert "Hung: rank 0 finished no step" in log
    assert log.index("rank 1 after step") < log.index("rank 0 after step"), "the silent one first"
    assert f"process {ranks.processes[1].pid})" in log
    # Whichever exchange it came to: gradients, images for the certificate, the wish to stop.
    waits_in = r"in (all_reduce|all_gather|_engine_run_backward)\b"
    assert re.search(waits_in, log), "the stacks tell what it waited in"


@pytest.mark.invariant(21)
def test_ranks_that_a_dead_link_parts_end_by_themselves(tmp_path: Path) -> None:
    """No connection is closed: each waits for the other, and nothing else would ever tell them."""
    spec = two_ranks(evals=[], optim__epochs=30)
    with Ranks(tmp_path / "whole", spec) as ranks:
        assert [process.wait(DEADLINE_S) for process in ranks.processes] == [0, 0]
        whole = summary_of(ranks.run)
    with cable() as link, kill_ledger("cut off", "link down") as ledger:
        with Ranks(tmp_path / "cut", spec, over=link) as ranks:
            wait_for(lambda: has_logged(ranks.run) >= 2 * EVERY, "some steps", DEADLINE_S)
            link.pull()
            began = time.monotonic()
            ledger.did("link down")
            assert [process.wait(DEADLINE_S) for process in ranks.processes] == [Exit.HUNG] * 2
            ledger.note(f"both ended {time.monotonic() - began:.1f} s after (limit {LIMIT_S})")
        killed_at = has_logged(ranks.run)
        with Ranks(tmp_path / "cut", spec) as ranks:
            assert [process.wait(DEADLINE_S) for process in ranks.processes] == [0, 0]
        goes_on(ranks.run, killed_at, EVERY)
        cut = summary_of(ranks.run)
        ledger.note(f"cut off at step {killed_at}")
    assert whole is not None
    assert cut is not None
    assert cut.weights_sha256 == whole.weights_sha256


def test_a_long_evaluation_is_waited_for(tmp_path: Path) -> None:
    evals = [{"kind": "knn", "every_epochs": 1}]
    spec = two_ranks(evals=evals, optim__epochs=2)
    with Ranks(tmp_path, spec, evaluations_take_s=3 * LIMIT_S) as ranks:
        assert [process.wait(DEADLINE_S) for process in ranks.processes] == [0, 0]
    assert summary_of(ranks.run) is not None
    assert not ranks.run.hung.exists()


@pytest.mark.ray
@pytest.mark.invariant(21)
def test_a_stopped_rank_costs_a_restart_and_no_bit(tmp_path: Path) -> None:
    spec = two_ranks(evals=[], optim__epochs=60)  # the driver looks every 3 s
    whole = execute(spec, folder(tmp_path, "whole"), identity())
    run = folder(tmp_path, "stopped")
    with kill_ledger("hang under Ray Train", "rank stopped") as ledger:
        stopped: list[int] = []

        def stop(progress: dict[str, object]) -> None:
            if not stopped and int(str(progress["step"])) >= 2 * EVERY:
                stopped.append(read_json(run.beat(1))["pid"])
                os.kill(stopped[0], signal.SIGSTOP)
                ledger.did("rank stopped")
                ledger.note(f"process {stopped[0]} at step {has_logged(run)}")

        summary = execute(spec, run, identity(), on_progress=stop)
        log = run.rank_log(0).read_text()
        ledger.note(next(line for line in log.splitlines() if "Hung: " in line))
        ledger.note(next(line for line in log.splitlines() if "resumed at step" in line))
    assert summary.weights_sha256 == whole.weights_sha256
    assert summary.certificate == whole.certificate
    assert not _lives(stopped[0]), "the stopped process was left behind"


def test_a_file_that_never_opens_is_a_hang_for_the_supervisor(tmp_path: Path, home: Path) -> None:
    spec = tiny(
        evals=[], optim__epochs=60, checkpoint__every_epochs=None, checkpoint__every_steps=EVERY,
        tracking__log_every_steps=1, compute={"hang_timeout_s": LIMIT_S},
    )  # fmt: skip
    whole = execute(spec, folder(tmp_path, "whole"), identity())
    job = JobFolder(home / "jobs" / "j_stuck")
    run = job.run("run")
    job.root.mkdir(parents=True)
    job.spec.write_text(spec.to_yaml())
    first = _attempt(job, 1, home)
    try:
        wait_for(lambda: has_logged(run) >= 2 * EVERY, "some steps", DEADLINE_S)
        os.mkfifo(run.alarm)  # who opens it waits for a writer
        assert first.wait(DEADLINE_S) == Exit.HUNG
    finally:
        first.kill()
        first.wait()
    result = read_json(job.result)
    assert (result["outcome"], result["reason_code"]) == ("FAILED", ReasonCode.HUNG)
    assert "read_json" in run.rank_log(0).read_text()
    run.alarm.unlink()
    killed_at = has_logged(run)
    assert _attempt(job, 2, home).wait(DEADLINE_S) == 0
    goes_on(run, killed_at, EVERY)
    summary = summary_of(run)
    assert summary is not None
    assert summary.weights_sha256 == whole.weights_sha256


def _attempt(job: JobFolder, attempt: int, home: Path) -> subprocess.Popen[bytes]:
    own(job, attempt)
    return subprocess.Popen(
        [sys.executable, "-m", "stoplab_platform.supervisor", "--job", job.root.name,
         "--attempt", str(attempt)],
        env={**os.environ, "STOPLAB_HOME": str(home)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
