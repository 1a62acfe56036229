"""A node that is cut off from the network in mid-run: the run goes on elsewhere, by itself.

The node lives on, and sees the run's folder all the while: what is left of the run on it must end
itself before it writes a word.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from stoplab_platform.tracking import drain
from support_drives import DEADLINE_S, Drive
from support_invariants import goes_on, has_logged, is_whole
from support_ledger import kill_ledger
from support_netns import Cable, cable
from support_raylets import Raylet, Raylets, raylets
from support_runs import tiny
from support_store import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(2 * 3600)]

EVERY, LIMIT_S = 5, 20.0


@pytest.mark.invariant(21)
def test_a_node_behind_a_dead_link(
    tmp_path: Path, home: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "3000")
    spec = tiny(
        evals=[], optim__epochs=20, checkpoint__every_epochs=None, checkpoint__every_steps=EVERY,
        tracking__log_every_steps=1, compute={"workers": 2, "hang_timeout_s": LIMIT_S},
    )  # fmt: skip
    with (
        cable() as link,
        raylets(0, ip=link.near_ip) as cluster,
        kill_ledger("node cut off", "link down") as ledger,
    ):
        cluster.joined(_near(cluster, link))
        cluster.joined(_far(cluster, link))
        whole, cut = (Drive(spec, job, home, cluster.head.env) for job in ("j_whole", "j_cut"))
        try:
            whole.start()
            undisturbed = whole.finish()
            cut.start()
            cut.until(2 * EVERY)
            away = psutil.Process(next(pid for pid in (cut.pid(0), cut.pid(1)) if _in(link, pid)))
            group, began = cut.group(), time.monotonic()
            link.pull()
            ledger.did("link down")
            _near(cluster, link)  # where the run finds room again
            at = has_logged(cut.run)
            while cut.group() == group:
                at = has_logged(cut.run)
                assert time.monotonic() < began + DEADLINE_S, "nobody went on"
                time.sleep(0.05)
            ledger.note(f"at step {at}, taken on {time.monotonic() - began:.0f} s after")
            wait_for(lambda: not away.is_running(), "the worker behind the link ends", 120)
            ledger.note(
                f"the worker behind the link had ended {time.monotonic() - began:.0f} s after"
            )
            summary = cut.finish()
            goes_on(cut.run, at, EVERY)
            link.plug()
            assert summary.weights_sha256 == undisturbed.weights_sha256
            assert summary.certificate == undisturbed.certificate
            assert drain(cut.run, mlflow_uri, timeout_s=120)
            assert summary.mlflow_run_id is not None
            is_whole(MlflowClient(mlflow_uri), summary.mlflow_run_id, cut.run)
        finally:
            cut.close()
            whole.close()


def _near(cluster: Raylets, link: Cable) -> Raylet:
    """A node on this side."""
    options = [f"--node-ip-address={link.near_ip}"]
    return cluster.begin(options=options, env={"GLOO_SOCKET_IFNAME": link.near})


def _far(cluster: Raylets, link: Cable) -> Raylet:
    """The node behind the link."""
    options = [f"--node-ip-address={link.far_ip}"]
    return cluster.begin(under=link.inside, options=options, env={"GLOO_SOCKET_IFNAME": link.far})


def _in(link: Cable, pid: int) -> bool:
    """Whether a process is at the far end."""
    own = Path(f"/proc/{pid}/ns/net").stat()
    there = Path("/run/netns", link.namespace).stat()
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
