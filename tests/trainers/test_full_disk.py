"""A disk that is full: the run goes on for a while, older checkpoints stay, no draft does."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stoplab_platform.paths import RunFolder
from stoplab_trainers import checkpoint
from stoplab_trainers.checkpoint import save
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.hooks import Saving
from stoplab_trainers.loop import Run, StepReport, steps
from stoplab_trainers.writing import MOST_LOST, Writer
from support_runs import tiny

STATE = {"a": torch.zeros(1000)}
Full = Callable[[bool], None]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """Says whether the disk is full; then every write ends on the device that always is."""
    saving, now = torch.save, [False]

    def somewhere(tensors: Any, file: Any) -> None:
        if not now[0]:
            return saving(tensors, file)
        with Path("/dev/full").open("wb", buffering=0) as disk:
            return saving(tensors, disk)

    monkeypatch.setattr(torch, "save", somewhere)
    return lambda is_full: now.__setitem__(0, is_full)


def tried(writer: Writer, step: int) -> None:
    """A save, and the next look at it."""
    writer.begin(step, STATE, keep=1)
    written = writer._written
    assert written is not None
    written.exception(60)
    writer.check()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_torch_does_not_hide_what_the_disk_said(tmp_path: Path, full: Full) -> None:
    full(True)
    with pytest.raises(OSError, match="No space left on device") as ended:
        save(tmp_path / "some", step=1, tensors=STATE, identity={}, keep=1)
    assert ended.value.errno == errno.ENOSPC
    assert names(tmp_path / "some") == []


def test_an_error_of_torchs_own_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("enforce fail")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="enforce fail"):
        save(tmp_path, step=1, tensors=STATE, identity={}, keep=1)


def test_three_in_a_row_end_the_run(
    tmp_path: Path, full: Full, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    writer = Writer(folder, {})
    tried(writer, 1)
    full(True)
    for step in range(2, 1 + MOST_LOST):
        with caplog.at_level(logging.ERROR):
            tried(writer, step)
        assert f"OF STEP {step} IS NOT SAVED: [Errno 28] No space left on device" in caplog.text
        assert names(folder) == ["step-00000001"], "the older one stays, no draft does"
    full(False)
    tried(writer, 5)
    assert names(folder) == ["step-00000005"]
    full(True)
    for step in range(6, 5 + MOST_LOST):
        tried(writer, step)
    with pytest.raises(OSError, match="No space"):
        tried(writer, 9)
    assert names(folder) == ["step-00000005"]
    writer.close()


def test_the_last_checkpoint_is_never_given_up(tmp_path: Path, full: Full) -> None:
    run = Run(tiny(), ShardSet.open("digits", tmp_path / "cache"))
    next(steps(run))
    folder = RunFolder(tmp_path / "run")
    full(True)
    with Saving(folder, {}) as saving, pytest.raises(OSError, match="No space"):
        saving(run, StepReport(run.step, run.step, 0, False, 1.0, {}))
    assert checkpoint.latest(folder.checkpoints) is None
