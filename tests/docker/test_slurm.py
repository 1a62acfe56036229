"""The SLURM script on one node; SLURM's own two commands are stood in for, all else is real."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support_lab import living, until
from support_shipping import DOCKER, HOUSE

SCRIPT = DOCKER / "slurm/stoplab.sbatch"
# Runs the command on this machine: everything behind the step's own options.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
tr , '\\n' <<<"$3"
"""
QUICK = (
    "base.optim.epochs=1", "base.optim.warmup_epochs=0.1", "base.evals=[{kind: knn}]",
    "space.positions.noise_std.grid=[0.25]",
)  # fmt: skip


@pytest.fixture
def allocation(tmp_path: Path) -> dict[str, str]:
    """The environment that sbatch gives a script on one node."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(HOUSE),
        "SLURM_JOB_ID": str(random.SystemRandom().randrange(100_000, 999_999)),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "2",
        "STOPLAB_VENV": str(Path(sys.executable).parents[1]),
        "STOPLAB_HEAD_IP": "127.0.0.1",
    }


def test_several_nodes_need_an_mlflow_that_all_of_them_reach(allocation: dict[str, str]) -> None:
    del allocation["MLFLOW_TRACKING_URI"]
    done = subprocess.run(
        [SCRIPT], env={**allocation, "SLURM_JOB_NODELIST": "localhost,elsewhere"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "with 2 nodes it must name an MLflow server" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (QUICK, 0, "[1/1] noise_std=0.25 s0  done"),
        (("base.optim.epochs=0",), 2, "base.optim.epochs"),
    ],
    ids=["runs", "refused"],
)
def test_a_study_ends_as_its_driver_does_and_leaves_nothing(
    allocation: dict[str, str], home: Path, tmp_path: Path,
    changes: Sequence[str], code: int, said: str,
) -> None:  # fmt: skip
    words = [word for change in changes for word in ("--set", change)]
    log = tmp_path / "log"
    with log.open("wb") as output:  # not a pipe: what is left behind would hold it open
        script = subprocess.Popen(
            ["bash", SCRIPT, "sweeps/configs/noise.yaml", *words],
            env=allocation, stdout=output, stderr=output,
        )  # fmt: skip
        assert script.wait(800) == code, log.read_text()
    assert said in log.read_text()
    number = allocation["SLURM_JOB_ID"]
    until(lambda: not living("SLURM_JOB_ID", number.__eq__))  # Ray's own helpers end last
    assert not Path(f"/tmp/stoplab-{number}").exists()
    assert list((home / "tokens").iterdir()) == []
