from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stoplab_platform.ledger import DONE, Cell, CellState, Ledger
from stoplab_platform.paths import Home
from support_ray import RayHead, ray_head

HOUSE = Path(__file__).parents[2]
QUICK = ("base.optim.epochs=1", "base.optim.warmup_epochs=0.1", "base.evals=[{kind: knn}]")
SMALL = {
    "noise": (*QUICK, "space.positions.noise_std.grid=[0.0, 0.25]"),
    "noise_by_masking_3x3": (
        *QUICK, "space.positions.noise_std.grid=[0.25]", "space.masking_ratio.grid=[0.6, 0.7]",
        "replicates=1",
    ),
    "asha": (
        "base.optim.epochs=3", "base.optim.warmup_epochs=0.1", "search.samples=3",
        "base.evals=[{kind: knn, every_epochs: 1}]", "scheduler.grace_epochs=1",
    ),
    "pbt": (
        "base.optim.epochs=2", "base.optim.warmup_epochs=0.1", "base.evals=[{kind: knn}]",
        "search.samples=2", "scheduler.interval_epochs=1", "scheduler.quantile=0.5",
    ),
    "two_gpus": (
        *QUICK, "base.compute.gpus_per_worker=0", "base.compute.cpus_per_worker=0.5",
        "search.samples=1",
    ),
}  # fmt: skip


def submitted(head: RayHead, config: str) -> str:
    """What `sweeps/submit.sh` prints until the job has ended; it fails as the job does."""
    changes = [word for change in SMALL[config] for word in ("--set", change)]
    env = {
        **os.environ,
        "RAY_ADDRESS": head.dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(head.token_path),
    }
    done = subprocess.run(
        [HOUSE / "sweeps" / "submit.sh", f"sweeps/configs/{config}.yaml", *changes],
        env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_ready_made_sweep_runs_as_a_ray_job(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    found: dict[str, list[Cell]] = {}
    with ray_head() as head:
        for config in SMALL:
            before = {job.name for job in Home(home).jobs.glob("*")}
            printed = submitted(head, config)
            (job,) = (j for j in Home(home).jobs.iterdir() if j.name not in before)
            found[config] = Ledger(Home(home).job(job.name)).cells()
            assert "best: noise_std=" in printed
    assert {config: len(cells) for config, cells in found.items()} == {
        "noise": 2, "noise_by_masking_3x3": 2, "asha": 3, "pbt": 4, "two_gpus": 1,
    }  # fmt: skip
    assert {cell.state for cell in found.pop("asha")} <= DONE
    states = {cell.state for cells in found.values() for cell in cells}
    assert states == {CellState.SUCCEEDED}
