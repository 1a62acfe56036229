from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from stoplab_platform.errors import Stopped
from stoplab_platform.files import read_lines, write_json
from stoplab_platform.tracking import client
from stoplab_platform.tracking.sender import sent_run_id
from stoplab_trainers import checkpoint
from stoplab_trainers.launch import execute
from support_runs import folder, identity, tiny

SPEC = tiny(optim__epochs=4, evals=[{"kind": "knn", "every_epochs": 1}])


def test_scheduled_scores_are_left_and_told(tmp_path: Path) -> None:
    run, told = folder(tmp_path), list[tuple[int, Mapping[str, float]]]()
    execute(SPEC, run, identity(), on_scores=lambda *score: told.append(score))
    lines = read_lines(run.scores)
    assert [(line["epoch"], line["values"]) for line in lines] == told
    assert [epoch for epoch, _ in told] == [1, 2, 3]  # the last one is the final evaluation
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all(0 < line["values"]["val/knn_top1"] <= 1 for line in lines)


def test_a_pruned_run_ends_at_once_and_says_so(tmp_path: Path, mlflow_uri: str) -> None:
    run = folder(tmp_path)

    def prune(epoch: int, values: Mapping[str, float]) -> None:
        if epoch == 2:
            write_json(run.prune, {"intent": "PRUNED", "epoch": epoch})

    with pytest.raises(Stopped) as stopped:
        execute(SPEC, run, identity(), on_scores=prune)
    assert stopped.value.intent == "PRUNED"
    assert len(read_lines(run.scores)) == 2
    assert stopped.value.step == read_lines(run.scores)[-1]["step"]
    tracked = client(mlflow_uri).get_run(str(sent_run_id(run)))
    assert tracked.info.status == "KILLED"
    assert tracked.data.tags["stoplab.pruned"] == str(stopped.value.step)
    assert not run.summary.exists()


def test_a_run_that_ended_while_it_was_judged_catches_up(tmp_path: Path) -> None:
    run, told = folder(tmp_path), list[int]()

    def fail(epoch: int, values: Mapping[str, float]) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        execute(SPEC, run, identity(), on_scores=fail)
    run.scores.unlink()  # as if it had ended before they were left
    assert checkpoint.latest(run.checkpoints) is not None, "saved before it was judged"
    execute(SPEC, run, identity(), on_scores=lambda epoch, _: told.append(epoch))
    assert told == [1, 2, 3]


def test_a_line_that_was_cut_off_costs_no_later_start(tmp_path: Path) -> None:
    """As by a disk that was full: the next line must not be a part of it."""
    run, stop, told = folder(tmp_path), tmp_path / "stop.json", list[int]()

    def pause(epoch: int, values: Mapping[str, float]) -> None:
        told.append(epoch)
        write_json(stop, {"intent": "PAUSED"})

    for epoch in (1, 2):
        with pytest.raises(Stopped):
            execute(SPEC, run, identity(), stop_file=stop, on_scores=pause)
        stop.unlink()
        if epoch == 1:
            os.truncate(run.scores, run.scores.stat().st_size - 20)
    execute(SPEC, run, identity(), stop_file=stop, on_scores=lambda epoch, _: told.append(epoch))
    assert told == [1, 1, 2, 3]
    assert [line["epoch"] for line in read_lines(run.scores)] == [1, 2, 3]


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_are_ended_by_the_file(tmp_path: Path) -> None:
    run, told = folder(tmp_path), list[int]()

    def prune(epoch: int, values: Mapping[str, float]) -> None:
        told.append(epoch)
        write_json(run.prune, {"intent": "PRUNED", "epoch": epoch})

    workers = {"compute__workers": 2, "compute__cpus_per_worker": 0.5}
    spec = tiny(optim__epochs=500, evals=[{"kind": "knn", "every_epochs": 1}], **workers)
    with pytest.raises(Stopped) as stopped:
        execute(spec, run, identity(), on_scores=prune)
    assert stopped.value.intent == "PRUNED"
    assert told[:1] == [1]
    assert not run.summary.exists()
