"""Workers that come and go, on real raylets: killed, added and drained while a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json
from stoplab_platform.handoff import read_news
from stoplab_platform.specs import RunSpec
from stoplab_trainers import checkpoint
from stoplab_trainers.loop import World
from stoplab_trainers.rank import run_rank
from stoplab_trainers.watchdog import Watchdog
from support_drives import Drive, logged
from support_invariants import has_logged
from support_raylets import Raylets, raylets
from support_runs import folder, identity, tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
EVERY = 20  # steps between checkpoints
LOSS, WORKERS = "train/loss", "train/workers"


def spec_of(**changes: Any) -> RunSpec:
    """A run of twelve images a step, which 4, 3 and 2 workers can share."""
    return tiny(**{
        "evals": [], "optim__batch_size": 12, "optim__epochs": 15, "optim__lr": 2e-4,
        "compute__threads": 1, "checkpoint__every_epochs": None,
        "checkpoint__every_steps": EVERY, "tracking__log_every_steps": 1, **changes,
    })  # fmt: skip


@contextmanager
def driven(cluster: Raylets, spec: RunSpec, home: Path) -> Iterator[Drive]:
    """A run's driver that joined the cluster; no process of it is left."""
    drive = Drive(spec, "j_run", home, cluster.head.env)
    drive.start()
    try:
        yield drive
    finally:
        drive.close()


def test_four_then_two_then_three_workers_train_as_one_undisturbed(
    tmp_path: Path, home: Path
) -> None:
    spec = spec_of(compute__workers=4, compute__min_workers=2)
    whole = folder(tmp_path, "whole")
    undisturbed = run_rank(spec, whole, identity(), World(), Watchdog(whole, World()))
    assert undisturbed is not None
    with raylets(0) as cluster:
        _, second = cluster.add(2), cluster.add(2)
        with driven(cluster, spec, home) as drive:
            drive.sees(lambda: has_logged(drive.run) > 3 * EVERY, "steps of four workers")
            killed_at, raylet = has_logged(drive.run), cluster.kill(second)
            killed_before = has_logged(drive.run)
            drive.sees(lambda: 2 in drive.logged(WORKERS).values(), "steps of two workers")
            cluster.add(1)
            drive.sees(lambda: 3 in drive.logged(WORKERS).values(), "steps of three workers")
            ended = drive.finish()
    print(f"raylet {raylet} was killed at step {killed_at}", *_moves(drive), sep="\n")
    said = drive.log.read_text()
    assert "goes on with 2 workers (of 4): node lost" in said
    assert "goes on with 3 workers (of 4): room for more" in said
    lost, grown = drive.resumed()
    assert killed_at - 2 * EVERY <= lost <= killed_before + 2 * EVERY  # what is logged comes later
    by_step = drive.logged(WORKERS)
    assert [by_step[grown], by_step[grown + 1]] == [2, 3], "a step was lost by growing"
    assert set(by_step.values()) == {4, 3, 2}
    assert ended.certificate == undisturbed.certificate
    assert ended.run_digest == undisturbed.run_digest
    one, many = logged(whole, LOSS), drive.logged(LOSS)
    assert list(many) == list(one) == list(range(1, undisturbed.steps + 1))
    furthest = max(abs(many[step] / one[step] - 1) for step in one)
    print(f"{len(one)} losses, at most {furthest:.1e} apart")
    assert furthest < 1e-3


def test_a_drained_node_costs_no_step_where_the_others_go_on(home: Path) -> None:
    spec = spec_of(
        compute__workers=2, compute__min_workers=1, optim__epochs=40, checkpoint__every_steps=10_000
    )
    with raylets(2) as cluster, driven(cluster, spec, home) as drive:
        drive.sees(lambda: has_logged(drive.run) > EVERY, "steps of two workers")
        cluster.drain(_node(drive, 1), 120)
        drive.finish()
    print(*_moves(drive), sep="\n")
    assert "goes on with 1 worker (of 2): a node is taken away" in drive.log.read_text()
    (saved,) = drive.resumed()
    by_step = drive.logged(WORKERS)
    assert [by_step[saved], by_step[saved + 1]] == [2, 1], "a step was lost"
    told = read_news(drive.run, drive.attempt)
    assert told == f"goes on with 1 worker (of 2): a node is taken away (after step {saved})"


def test_a_drained_node_ends_an_attempt_of_fixed_workers_saved(home: Path) -> None:
    spec = spec_of(compute__workers=2, optim__epochs=40, checkpoint__every_steps=10_000)
    with raylets(2) as cluster, driven(cluster, spec, home) as drive:
        drive.sees(lambda: has_logged(drive.run) > EVERY, "steps")
        cluster.drain(_node(drive, 0), 120)
        assert drive.wait() == Exit.STOPPED, drive.tail()
    newest = checkpoint.latest(drive.run.checkpoints)
    assert newest is not None
    saved = checkpoint.load(newest, identity=None)[0]
    print(f"saved at step {saved}")
    assert saved == has_logged(drive.run)
    assert f"stopped (PREEMPTED) at step {saved}" in drive.log.read_text()


def _node(drive: Drive, rank: int) -> str:
    return str(read_json(drive.run.place(rank))["node"])


def _moves(drive: Drive) -> list[str]:
    return [line for line in drive.log.read_text().splitlines() if " (of " in line]
