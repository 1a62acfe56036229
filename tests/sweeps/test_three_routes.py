"""One sweep by each of the three ways to start it: the same runs, the same numbers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from stoplab_platform.ledger import CellState, Ledger
from stoplab_platform.paths import Home
from support_lab import Stoplab

HOUSE = Path(__file__).parents[2]
CONFIG = "sweeps/configs/noise_by_masking_3x3.yaml"
CHANGES = (
    "base.optim.epochs=2", "base.optim.warmup_epochs=0.1",
    "space.positions.noise_std.grid=[0.0, 0.25]", "space.masking_ratio.grid=[0.6, 0.7]",
)  # fmt: skip
OPTIONS = [word for change in CHANGES for word in ("--set", change)]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Stoplab]:
    with Stoplab(tmp_path / "lab", HOUSE).up() as lab:
        yield lab


def by_command_line(lab: Stoplab) -> None:
    lab.run("sweep", CONFIG, *OPTIONS, timeout_s=600)


def over_rest(lab: Stoplab) -> None:
    lab.run("submit", CONFIG, *OPTIONS, "--watch", timeout_s=600)


def as_a_ray_job(lab: Stoplab) -> None:
    told = dict(shlex.split(line)[1].split("=", 1) for line in lab.run("env").splitlines())
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        [HOUSE / "sweeps" / "submit.sh", CONFIG, *OPTIONS],
        env={**os.environ, **told, "PATH": path}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def results(home: Path, known: set[str]) -> Mapping[str, Mapping[str, float]]:
    """The cells of the one job that is new, each with what it measured but for times."""
    (job,) = (job.name for job in Home(home).jobs.iterdir() if job.name not in known)
    known.add(job)
    cells = Ledger(Home(home).job(job)).cells()
    assert {cell.state for cell in cells} == {CellState.SUCCEEDED}
    return {c.id: {n: v for n, v in c.metrics.items() if not timing(n)} for c in cells}


def timing(name: str) -> bool:
    """Whether a metric says how fast it went: the only ones that may differ."""
    return name.startswith("time/") or name == "train/samples_per_s"


def test_every_way_gives_the_same_runs_and_numbers(lab: Stoplab) -> None:
    known: set[str] = set()
    found = []
    for route in (by_command_line, over_rest, as_a_ray_job):
        route(lab)
        found.append(results(lab.home, known))
    first, *others = found
    assert len(first) == 8
    assert all("val/knn_top1" in metrics for metrics in first.values())
    assert others == [first, first]
