"""A retry is a new job that keeps what the old one has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoplab_platform import settle
from stoplab_platform.adoption import adopt, adopt_cells
from stoplab_platform.errors import IllegalMove
from stoplab_platform.fence import owner
from stoplab_platform.files import remove, write_atomic
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import Home, JobFolder
from stoplab_platform.service import Jobs
from stoplab_platform.specs import ComparisonSpec, load_spec
from support_jobs import running_lab, script
from support_store import ADMIN, compare_spec, lab_settings, new_job, open_store


@pytest.fixture(autouse=True)
def _quiet_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)


def test_a_retry_adopts_finished_cells(tmp_path: Path) -> None:
    source, target = JobFolder(tmp_path / "old"), JobFolder(tmp_path / "new")
    Ledger(source).plan([Cell(id=name, index=n, seed=0) for n, name in enumerate("abc")])
    Ledger(source).update("a", state=CellState.SUCCEEDED, metrics={"test/linear_top1": 0.5})
    Ledger(source).update("b", state=CellState.FAILED)
    ended = Ledger(source).get("a")
    source.run("a").root.mkdir(parents=True)
    before = source.run("a")
    for file in (before.spec, before.summary, before.predictions, before.spool):
        file.write_text("{}")
    for name in "ab":
        write_atomic(source.run(name).checkpoints / "step-00000007" / "state.pt", name)
    adopt_cells(source, target)
    remove(source.root)
    cell, *others = Ledger(target).cells()
    assert cell == ended.model_copy(update={"adopted": True})
    # A search that draws as it goes would not come back to a point it cannot see.
    assert others == [Cell(id="b", index=1, seed=0), Cell(id="c", index=2, seed=0)]
    run = target.run("a")
    kept = (run.spec, run.summary, run.predictions, run.spool)
    assert all(file.read_text() == "{}" for file in kept)
    # The other job may be deleted, and the weights are still to be exported.
    assert (run.checkpoints / "step-00000007" / "state.pt").read_text() == "a"
    assert not target.run("b").checkpoints.exists()


def test_a_retry_where_no_file_has_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted", source, None, target)

    monkeypatch.setattr(os, "link", refused)
    home = Home(tmp_path)
    with open_store(lab_settings(tmp_path).database) as store:
        store.submit(new_job(id="j_old"))
        job = store.submit(new_job(id="j_new", retry_of="j_old")).job
    saved = home.job("j_old").run("run").checkpoints / "step-00000007" / "state.pt"
    write_atomic(saved, "seven")
    for _ in range(2):
        adopt(job, home)
    checkpoints = home.job("j_new").run("run").checkpoints
    assert [file.read_text() for file in checkpoints.rglob("*") if file.is_file()] == ["seven"]


def test_a_retry_takes_over_whichever_attempt_is_its_first(home: Path) -> None:
    with running_lab(home, script("raise KeyError('lr')")) as lab:
        first = lab.submit()
        lab.wait(first, State.FAILED)
    write_atomic(lab.folder(first).run("run").checkpoints / "step-7" / "state.pt", "seven")
    with open_store(lab.settings.database) as store:
        second = Jobs(store, lab.settings).retry(ADMIN, first.id).job
    checkpoints = lab.folder(second).run("run").checkpoints
    write_atomic(checkpoints, "in the way")
    with running_lab(home, script("raise KeyError('lr')")) as lab:
        lab.wait(second, State.RECOVERING)
        with pytest.raises(IllegalMove, match=second.id):
            lab.jobs.delete(ADMIN, first.id)
        checkpoints.unlink()
        assert lab.wait(second, State.FAILED).attempt > 1
        assert (checkpoints / "step-7" / "state.pt").read_text() == "seven"
        lab.jobs.delete(ADMIN, first.id)


def test_an_extension_starts_with_them_and_its_limits(home: Path) -> None:
    with running_lab(home, script("pass")) as lab:
        first = lab.jobs.submit(ADMIN, compare_spec(seeds=(0, 1))).job
        lab.wait(first, State.SUCCEEDED)
        Ledger(lab.folder(first)).plan([Cell(id="x-s0", index=0, seed=0)])
        Ledger(lab.folder(first)).update("x-s0", state=CellState.SUCCEEDED)
        second = lab.jobs.extend(ADMIN, first.id, {"seeds": [5], "limits": {"trials": 9}}).job
        lab.wait(second, State.SUCCEEDED)
        assert [cell.id for cell in Ledger(lab.folder(second)).cells()] == ["x-s0"]
        spec = load_spec(lab.folder(second).spec)
        assert isinstance(spec, ComparisonSpec)
        assert (spec.seeds, spec.limits.trials) == ((0, 1, 5), 9)


def test_a_retry_starts_with_them(home: Path) -> None:
    with running_lab(home, script("pass")) as lab:
        first = lab.jobs.submit(ADMIN, compare_spec()).job
        lab.wait(first, State.SUCCEEDED)
        Ledger(lab.folder(first)).plan([Cell(id="x-s0", index=0, seed=0)])
        Ledger(lab.folder(first)).update("x-s0", state=CellState.SUCCEEDED)
        second = lab.jobs.retry(ADMIN, first.id).job
        lab.wait(second, State.SUCCEEDED)
        assert [cell.id for cell in Ledger(lab.folder(second)).cells()] == ["x-s0"]
        assert owner(lab.folder(second)) == 1
