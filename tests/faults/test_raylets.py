"""kill -9 of ranks, drivers and raylets of a run on three nodes: the weights stay the same.

Six kills; STOPLAB_TEST_KILLS=20 makes them twenty. The driver's next attempt is begun as the
platform begins it, but that nobody buries what the dead driver left: on other machines nobody
could, so those processes have to see for themselves that they are no longer wanted.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from stoplab_platform.specs import RunSpec
from stoplab_platform.tracking import drain
from support_drives import DEADLINE_S, Drive
from support_invariants import goes_on, has_logged, is_whole
from support_ledger import KillLedger, kill_ledger
from support_raylets import Raylets, raylets
from support_runs import tiny
from support_store import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(4 * 3600)]

KILLS = int(os.environ.get("STOPLAB_TEST_KILLS", "6"))
WORKERS, EVERY = 3, 5
GONE_S = 300.0
LEFT = "ray::PlacementGroupCleaner"
"""Ray's own, which outlives a driver that is killed: it raises its wish to end in a thread, where
nobody hears it. It writes nothing, and the next attempt's supervisor ends it (`fence.bury`)."""


def three_workers() -> RunSpec:
    """A run of some hundred steps, which leaves room for each kill."""
    return tiny(
        evals=[],
        optim__batch_size=63,
        optim__epochs=2 + 2 * KILLS,
        checkpoint__every_epochs=None,
        checkpoint__every_steps=EVERY,
        tracking__log_every_steps=1,
        compute={"workers": WORKERS, "max_failures": KILLS},
    )


@pytest.mark.invariant(21)
def test_kills_of_ranks_drivers_and_raylets(tmp_path: Path, home: Path, mlflow_uri: str) -> None:
    spec, rng = three_workers(), np.random.default_rng(0)
    kinds = rng.permutation(np.resize(["worker", "driver", "raylet"], KILLS))
    with raylets(WORKERS) as cluster, kill_ledger("raylets", *set(kinds)) as ledger:
        whole, killed = (
            Drive(spec, job, home, cluster.head.env) for job in ("j_whole", "j_killed")
        )
        try:
            whole.start()
            undisturbed = whole.finish()
            steps = undisturbed.steps
            killed.start()
            # One kill in each part of the run, and none where it would end before the next.
            for part, kind in enumerate(kinds):
                span = (steps - 4 * EVERY) / KILLS
                step = int(2 * EVERY + span * (part + rng.uniform(0, 0.8)))
                killed.until(step)
                _kill(str(kind), killed, cluster, rng, ledger)
            summary = killed.finish()
            assert summary.weights_sha256 == undisturbed.weights_sha256
            assert summary.certificate == undisturbed.certificate
            wait_for(lambda: set(_living(killed)) <= {LEFT}, "no process of the job lives", GONE_S)
            ledger.note(f"{len(_living(killed))} of {LEFT} left")
            assert drain(killed.run, mlflow_uri, timeout_s=120)
            assert summary.mlflow_run_id is not None
            is_whole(MlflowClient(mlflow_uri), summary.mlflow_run_id, killed.run)
        finally:
            killed.close()
            whole.close()


def _kill(
    kind: str, drive: Drive, cluster: Raylets, rng: np.random.Generator, ledger: KillLedger
) -> None:
    """Kill one of a kind, and see the run go on."""
    group, told, began = drive.group(), drive.resumed(), time.monotonic()
    rank = int(rng.integers(WORKERS))
    if kind == "worker":
        what, pid = f"rank {rank}", drive.pid(rank)
        os.kill(pid, signal.SIGKILL)
    elif kind == "driver":
        what, pid = f"driver of attempt {drive.attempt}", drive.kill()
        drive.start()
    else:
        node = next(one for one in cluster.nodes if _holds(one.family, drive.pid(rank)))
        what, pid = f"raylet of {node.name}", cluster.kill(node)
        cluster.begin()
    at = has_logged(drive.run)
    while drive.group() == group:
        at = has_logged(drive.run)
        assert time.monotonic() < began + DEADLINE_S, f"{what} was killed, and nobody went on"
        time.sleep(0.05)
    wait_for(lambda: len(drive.resumed()) > len(told), "the run goes on", DEADLINE_S)
    resumed = drive.resumed()[-1]
    goes_on(drive.run, at, EVERY)
    ledger.did(kind)
    ledger.note(
        f"{what} (process {pid}) at step {at}, on from {resumed} after "
        f"{time.monotonic() - began:.0f} s: {at - resumed} steps lost"
    )


def _living(drive: Drive) -> list[str]:
    """Names of the job's processes."""
    return [name for _, name in drive.living()]


def _holds(family: list[psutil.Process], pid: int) -> bool:
    return any(process.pid == pid for process in family)
