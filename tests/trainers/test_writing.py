"""Checkpoints written beside the training are those that would be written in its place."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stoplab_platform.errors import Stopped
from stoplab_platform.files import write_json
from stoplab_platform.paths import RunFolder
from stoplab_trainers import checkpoint, writing
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.hooks import Saving, Stopping
from stoplab_trainers.loop import Run, StepReport, steps
from stoplab_trainers.snapshot import Snapshots
from stoplab_trainers.writing import Writer
from support_runs import tiny

MINE = {"run": "abc"}
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


class Held:
    """Writes that do not begin before they are let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._save = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", self)
        monkeypatch.setattr(writing, "SMALL_BYTES", 0)  # they are not waited for

    def __call__(self, *args: Any, **options: Any) -> checkpoint.Saved:
        self.begun.set()
        assert self.may.wait(DEADLINE_S)
        if self.error:
            raise self.error
        return self._save(*args, **options)

    def let_soon(self, once: threading.Event) -> None:
        """In another thread, as soon as somebody waits."""
        waiting = threading.Thread(target=lambda: once.wait(DEADLINE_S) and self.may.set())
        waiting.start()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    one = Held(monkeypatch)
    yield one
    one.may.set()


def trained(shards: ShardSet, count: int) -> Iterator[tuple[Run, StepReport]]:
    run = Run(tiny(checkpoint__every_epochs=None, checkpoint__every_steps=2), shards)
    for report in steps(run):
        yield run, report
        if run.step == count:
            return


def sha256(folder: Path, step: int) -> str:
    return str(checkpoint.manifest(folder / f"step-{step:08d}")["sha256"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_both_ways_write_the_same_bytes(digits: ShardSet, tmp_path: Path) -> None:
    """Also of the second snapshot, which lies where the first one lay."""
    plain, beside = tmp_path / "plain", RunFolder(tmp_path / "beside")
    with Saving(beside, MINE) as saving:
        for run, report in trained(digits, 5):
            saving(run, report)
            if run.step in (2, 4):
                state = run.state()
                checkpoint.save(plain, step=run.step, tensors=state, identity=MINE, keep=9)
    assert names(beside.checkpoints) == names(plain) == ["step-00000002", "step-00000004"]
    for step in (2, 4):
        assert sha256(beside.checkpoints, step) == sha256(plain, step)
    assert sha256(plain, 2) != sha256(plain, 4)


def test_steps_go_on_and_change_nothing_of_what_is_being_written(
    digits: ShardSet, tmp_path: Path, held: Held
) -> None:
    folder, wanted = RunFolder(tmp_path), ""
    with Saving(folder, MINE) as saving:
        for run, report in trained(digits, 3):
            saving(run, report)
            if run.step == 2:
                weights = run.model.state_dict()
                wanted = checkpoint.weights_sha256(weights)
        assert checkpoint.weights_sha256(weights) != wanted, "step 3 has changed them"
        assert held.begun.wait(DEADLINE_S)
        assert names(folder.checkpoints) == []
        held.may.set()
    found = checkpoint.latest(folder.checkpoints)
    assert found is not None
    step, state = checkpoint.load(found, identity=MINE)
    assert (step, checkpoint.weights_sha256(state["model"])) == (2, wanted)


def test_a_snapshot_shares_and_views_as_the_state_does() -> None:
    whole = torch.arange(12.0)
    named = OrderedDict(tied=whole, part=whole[2:8].view(2, 3).T, empty=torch.empty(0))
    named._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    state = {"a": named, "again": whole, "list": [1, {"x": torch.tensor(True)}], "lr": 0.1}
    snapshots = Snapshots()
    first = snapshots.take(state)
    addresses = first["again"].data_ptr(), first["list"][1]["x"].data_ptr()
    whole.add_(1)
    assert first["again"][0] == 0
    second = snapshots.take(state)
    assert (second["again"].data_ptr(), second["list"][1]["x"].data_ptr()) == addresses
    assert second["again"] is second["a"]["tied"]
    assert second["a"]["part"].untyped_storage().data_ptr() == second["again"].data_ptr()
    assert second["a"]._metadata == named._metadata  # type: ignore[attr-defined]
    torch.testing.assert_close(second, state, rtol=0, atol=0)
    assert second["a"]["part"].stride() == (1, 3)


def test_a_save_waits_for_the_one_before_and_says_so(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, waits = Writer(tmp_path, MINE), threading.Event()
    writer.begin(1, {"a": torch.zeros(3)}, keep=9)
    assert held.begun.wait(DEADLINE_S)
    waiting = writer.wait

    def wait() -> None:
        waits.set()
        waiting()

    monkeypatch.setattr(writer, "wait", wait)
    held.let_soon(waits)
    with caplog.at_level(logging.WARNING):
        writer.begin(2, {"a": torch.ones(3)}, keep=9)
    assert waits.is_set()
    assert "s for the checkpoint of step 1 to be written" in caplog.text
    writer.close()
    for step in (1, 2):
        _, state = checkpoint.load(tmp_path / f"step-{step:08d}", identity=MINE)
        assert torch.equal(state["a"], torch.full((3,), step - 1.0))


def test_the_last_step_and_a_pause_wait_until_it_is_whole(
    digits: ShardSet, tmp_path: Path, held: Held
) -> None:
    folder, stop = RunFolder(tmp_path / "run"), tmp_path / "stop.json"
    write_json(stop, {"intent": "PAUSED"})
    run, report = next(trained(digits, 1))
    last = StepReport(run.step, run.step, 0, False, 1.0, {})
    with Saving(folder, MINE) as saving:
        held.let_soon(held.begun)
        with pytest.raises(Stopped):
            Stopping([stop], saving)(run, report)
        assert names(folder.checkpoints) == ["step-00000001"]
        held.may.clear()
        held.begun.clear()
        held.let_soon(held.begun)
        run.step = 2
        saving(run, last)
        assert names(folder.checkpoints) == ["step-00000001", "step-00000002"]


def test_a_newer_attempts_half_written_one_is_left_alone(digits: ShardSet, tmp_path: Path) -> None:
    """Of a run that wakes up, its step's checkpoint comes before the look that ends it."""
    folder, fences = RunFolder(tmp_path), iter([False, True])
    draft = folder.checkpoints / ".step-00000009.0123abcd"
    with Saving(folder, MINE, fenced=lambda: next(fences)) as saving:
        for run, report in trained(digits, 4):
            saving(run, report)
            draft.mkdir(exist_ok=True, parents=True)
    assert names(folder.checkpoints) == [draft.name, "step-00000002"]


@pytest.mark.parametrize("call", ["check", "begin", "wait"])
def test_what_goes_wrong_is_raised_by_the_next_call(tmp_path: Path, held: Held, call: str) -> None:
    folder = tmp_path / "checkpoints"
    writer = Writer(folder, MINE)
    held.error = PermissionError("not yours")
    writer.begin(1, {}, keep=9)
    written = writer._written
    assert written is not None
    writer.check()  # nothing to tell yet
    held.may.set()
    assert isinstance(written.exception(DEADLINE_S), PermissionError)
    arguments = (2, {}, 9) if call == "begin" else ()
    with pytest.raises(PermissionError, match="not yours"):
        getattr(writer, call)(*arguments)
    held.error = None
    writer.begin(3, {}, keep=9)
    writer.close()
    assert names(folder) == ["step-00000003"]


def test_a_run_that_ends_otherwise_lets_the_write_end(
    tmp_path: Path, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own error counts; that of the write is told."""
    folder = RunFolder(tmp_path)
    for step, error in enumerate((None, OSError("broken pipe"))):
        held.error = error
        held.begun.clear()
        held.may.clear()
        held.let_soon(held.begun)
        with pytest.raises(ValueError, match="of the run"):
            failing(folder, step)
        assert names(folder.checkpoints) == ["step-00000000"]
    assert "the checkpoint of step 1 was not written" in caplog.text


def failing(folder: RunFolder, step: int) -> None:
    with Saving(folder, MINE) as saving:
        saving._writer.begin(step, {}, keep=9)
        raise ValueError("of the run")
