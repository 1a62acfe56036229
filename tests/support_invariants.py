"""What holds whatever happens (docs/jobs.md, I1 to I9), as checks that many tests share.

The ordinary tests call them; `faults/test_mechanisms.py` shows that they fail where the mechanism
behind a promise is taken out.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from stoplab_platform.errors import Conflict, IllegalMove, NotFound
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_lines
from stoplab_platform.jobs.models import Event, Job, Submitted
from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import JobFolder, RunFolder
from support_jobs import Lab, gone
from support_store import wait_for

if TYPE_CHECKING:  # it takes seconds to import
    from mlflow import MlflowClient


def kept(store: JobStore, acknowledged: Iterable[str]) -> None:
    """I1: every acknowledged job is there."""
    lost, acknowledged = [], list(acknowledged)
    assert acknowledged
    for job_id in acknowledged:
        try:
            store.get(job_id)
        except NotFound:
            lost.append(job_id)
    assert lost == [], f"acknowledged and lost: {lost}"


def one_job(done: Sequence[Submitted]) -> None:
    """I2: submits under one key gave one job, which one of them made."""
    assert len({submitted.job.id for submitted in done}) == 1
    assert sum(not submitted.replayed for submitted in done) == 1


def one_start(folder: JobFolder) -> None:
    """I2: of all who started an attempt, one ran its command, which prints `pid`."""
    assert folder.driver_log.read_text().count("pid ") == 1


def leaves(supervisor: subprocess.Popen[bytes], within_s: float = 20) -> None:
    """I2: a supervisor whose folder is a newer attempt's ends."""
    code: int | None = None
    with suppress(subprocess.TimeoutExpired):
        code = supervisor.wait(within_s)
    assert code == Exit.FENCED


def begun_once(folder: JobFolder, history: Sequence[Event]) -> bool:
    """I2 for a job whose command is `support_replica.once`; whether it was recovered.

    No attempt began twice, none while another was alive, and there were no more attempts than
    the store's history accounts for: the first, and one for each move to RECOVERING or out of
    PAUSED.
    """
    path = folder.root / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    begun = [line.removesuffix(" begins") for line in lines if line.endswith(" begins")]
    assert len(lines) == len(begun), f"two attempts at once: {lines}"
    assert len(set(begun)) == len(begun), f"an attempt began twice: {lines}"
    recoveries = sum(event.to_state is State.RECOVERING for event in history)
    resumed = sum(event.from_state is State.PAUSED for event in history)
    accounted = [str(number) for number in range(1, 2 + recoveries + resumed)]
    assert set(begun) <= set(accounted), f"{lines} began, {recoveries} recoveries are recorded"
    assert begun, "it never began"
    return recoveries > 0


def stays(store: JobStore, ended: Job, earlier: Job) -> None:
    """I3: a job that has ended moves nowhere, nor does who still knows it as it was earlier."""
    assert ended.state in TERMINAL
    for known in (ended, earlier):
        for state in State:
            with suppress(IllegalMove, Conflict):
                store.move(known, state, actor="test")
            assert store.get(ended.id) == ended, f"{known.state} to {state}"


def keeps_its_spec(store: JobStore, job: Job) -> None:
    """I3: no move carries another spec."""
    with suppress(AssertionError):
        store.move(job, State.CANCELLED, actor="test", spec={})
    assert store.get(job.id).spec == job.spec


def goes_on(run: RunFolder, killed_at: int, interval: int, beside: int = 0) -> None:
    """I4: the run that was killed after a step went on at most one checkpoint interval before.

    And, where its state is not small, the steps that were trained ``beside`` one write.
    """
    told = re.findall(r"resumed at step (\d+)", run.rank_log(0).read_text())
    resumed_at = int(told[-1]) if told else 0
    lost = killed_at - resumed_at
    assert lost <= interval + beside, f"killed at {killed_at}, resumed at {resumed_at}"


def has_logged(run: RunFolder) -> int:
    """The last step of which the run's spool knows."""
    if not run.spool.exists():
        return 0
    steps = [line["step"] for line in read_lines(run.spool) if line["verb"] == "metrics"]
    return max(steps, default=0)


def is_told(mlflow: MlflowClient, run_id: str, status: str, within_s: float = 60) -> None:
    """I6: MLflow comes to know how a job ended."""
    wait_for(lambda: mlflow.get_run(run_id).info.status == status, f"{status} in MLflow", within_s)


def is_whole(mlflow: MlflowClient, run_id: str, run: RunFolder) -> None:
    """I7: MLflow has every point of the run's own record once, and no others."""
    own: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(run.spool):
        if line["verb"] == "metrics":
            for name, value in line["values"].items():
                own.setdefault(name, []).append((line["step"], value))
    assert own
    for name, points in own.items():
        assert [step for step, _ in points] == sorted({step for step, _ in points}), name
        history = mlflow.get_metric_history(run_id, name)
        assert sorted((point.step, point.value) for point in history) == points, name


def frees(lab: Lab, job: Job, pid: int, to: State, within_s: float) -> None:
    """I8: a job that was asked to stop has stopped by then, and its process is gone."""
    lab.wait(job, to, within_s)
    assert gone(pid)
