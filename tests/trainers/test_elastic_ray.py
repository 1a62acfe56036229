"""Workers that come and go, on real raylets: killed, added and drained while a run goes on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.paths import RunFolder
from stoplab_platform.specs import RunSpec
from stoplab_trainers import checkpoint
from stoplab_trainers.loop import World
from stoplab_trainers.rank import run_rank
from stoplab_trainers.summary import Summary, summary_of
from stoplab_trainers.watchdog import Watchdog
from support_invariants import has_logged
from support_nodes import Cluster, cluster, losses, place_of, workers
from support_runs import folder, identity, tiny
from support_store import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
DEADLINE_S = 240.0
EVERY = 20  # steps between checkpoints


def spec_of(**changes: Any) -> RunSpec:
    """A run of twelve images a step, which 4, 3 and 2 workers can share."""
    return tiny(**{
        "evals": [], "optim__batch_size": 12, "optim__epochs": 15, "optim__lr": 2e-4,
        "compute__threads": 1, "checkpoint__every_epochs": None,
        "checkpoint__every_steps": EVERY, "tracking__log_every_steps": 1, **changes,
    })  # fmt: skip


class Driver:
    """A run's driver that joined the cluster, and what it leaves."""

    def __init__(self, process: subprocess.Popen[bytes], run: RunFolder, log: Path) -> None:
        self.process, self.run, self._log = process, run, log

    def until(self, condition: Any, what: str) -> None:
        """Wait while it lives."""
        wait_for(lambda: condition() or self.process.poll() is not None, what, DEADLINE_S)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """Its log."""
        return self._log.read_text()


@contextmanager
def driver(found: Cluster, spec: RunSpec, root: Path, home: Path) -> Iterator[Driver]:
    """Starts the run and leaves no process of it."""
    path = root / "spec.yaml"
    path.write_text(spec.to_yaml())
    process = found.train(path, "j_run", home)
    run = RunFolder(home / "jobs" / "j_run" / "runs" / "run")
    try:
        yield Driver(process, run, path.with_name("driver.log"))
    finally:
        process.kill()
        process.wait()


def test_four_then_two_then_three_workers_train_as_one_undisturbed(
    tmp_path: Path, home: Path
) -> None:
    spec = spec_of(compute__workers=4, compute__min_workers=2)
    whole = folder(tmp_path, "whole")
    undisturbed = run_rank(spec, whole, identity(), World(), Watchdog(whole, World()))
    assert undisturbed is not None
    with cluster(tmp_path, [2, 2]) as (found, (_, second)):
        with driver(found, spec, tmp_path, home) as ran:
            ran.until(lambda: has_logged(ran.run) > 3 * EVERY, "steps of four workers")
            killed_at = has_logged(ran.run)
            found.kill(second)
            ran.until(lambda: 2 in workers(ran.run).values(), "steps of two workers")
            found.add(1)
            ran.until(lambda: 3 in workers(ran.run).values(), "steps of three workers")
            assert ran.process.wait(DEADLINE_S) == Exit.OK, ran.said()
            said = ran.said()
    print("\n".join(found.done), *_moves(said), sep="\n")
    ended = summary_of(ran.run)
    assert isinstance(ended, Summary)
    assert "goes on with 2 workers (of 4): node lost" in said
    assert "goes on with 3 workers (of 4): room for more" in said
    lost, grown = _resumed(ran.run)
    assert killed_at - 2 * EVERY <= lost <= killed_at + EVERY
    by_step = workers(ran.run)
    assert [by_step[grown], by_step[grown + 1]] == [2, 3], "a step was lost by growing"
    assert set(by_step.values()) == {4, 3, 2}
    assert ended.certificate == undisturbed.certificate
    assert ended.run_digest == undisturbed.run_digest
    one, many = losses(whole), losses(ran.run)
    assert list(many) == list(one) == list(range(1, undisturbed.steps + 1))
    furthest = max(abs(many[step] / one[step] - 1) for step in one)
    print(f"{len(one)} losses, at most {furthest:.1e} apart")
    assert furthest < 1e-3


def test_a_drained_node_costs_no_step_where_the_others_go_on(tmp_path: Path, home: Path) -> None:
    spec = spec_of(
        compute__workers=2, compute__min_workers=1, optim__epochs=8, checkpoint__every_steps=10_000
    )
    with cluster(tmp_path, [1, 1]) as (found, _), driver(found, spec, tmp_path, home) as ran:
        ran.until(lambda: has_logged(ran.run) > EVERY, "steps of two workers")
        found.drain(place_of(ran.run, 1), 120)
        assert ran.process.wait(DEADLINE_S) == Exit.OK, ran.said()
        said = ran.said()
    print("\n".join(found.done), *_moves(said), sep="\n")
    assert "goes on with 1 workers (of 2): a node is taken away" in said
    (saved,) = _resumed(ran.run)
    by_step = workers(ran.run)
    assert [by_step[saved], by_step[saved + 1]] == [2, 1], "a step was lost"


def test_a_drained_node_ends_an_attempt_of_fixed_workers_saved(tmp_path: Path, home: Path) -> None:
    spec = spec_of(compute__workers=2, optim__epochs=40, checkpoint__every_steps=10_000)
    with cluster(tmp_path, [1, 1]) as (found, _), driver(found, spec, tmp_path, home) as ran:
        ran.until(lambda: has_logged(ran.run) > EVERY, "steps")
        found.drain(place_of(ran.run, 0), 120)
        assert ran.process.wait(DEADLINE_S) == Exit.STOPPED, ran.said()
    newest = checkpoint.latest(ran.run.checkpoints)
    assert newest is not None
    saved = checkpoint.load(newest, identity=None)[0]
    print("\n".join(found.done), f"saved at step {saved}", sep="\n")
    assert saved == has_logged(ran.run)
    assert f"stopped (PREEMPTED) at step {saved}" in ran.said()


def _resumed(run: RunFolder) -> list[int]:
    """The steps that later groups of workers went on from."""
    return [int(step) for step in re.findall(r"resumed at step (\d+)", run.rank_log(0).read_text())]


def _moves(said: str) -> list[str]:
    return [line for line in said.splitlines() if "workers (of" in line]
