"""File names, and files that are replaced whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from stoplab_platform.files import read_json, write_atomic, write_json
from stoplab_platform.paths import Home, RunFolder


def names(owner: object) -> list[Path]:
    return [
        getattr(owner, name)
        for name in dir(type(owner))
        if isinstance(getattr(type(owner), name), property)
    ]


def test_everything_lies_below_the_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    job = home.job("j_1")
    run = job.run("stochastic-s0")
    for owner, root in ((home, tmp_path), (job, home.jobs / "j_1"), (run, job.runs)):
        paths = names(owner)
        assert len(paths) == len(set(paths)) > 5
        assert all(path.is_relative_to(root) for path in paths)


def test_the_rank_logs_of_a_job_are_its_runs(tmp_path: Path) -> None:
    job = Home(tmp_path).job("j_1")
    assert job.rank_log(3) == job.run("run").rank_log(3)
    assert job.rank_log(3) != job.rank_log(0)


def test_each_run_that_has_a_folder(tmp_path: Path) -> None:
    job = Home(tmp_path).job("j_1")
    assert list(job.each_run()) == []
    for name in ("b", "a"):
        job.run(name).root.mkdir(parents=True)
    assert list(job.each_run()) == [job.run("a"), job.run("b")]
    assert all(isinstance(run, RunFolder) for run in job.each_run())


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    texts = {"a" * 100_000, "b" * 100_000}
    write_atomic(path, "a" * 100_000)
    done = threading.Event()

    def write() -> None:
        for text in [*texts] * 20:
            write_atomic(path, text)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_text() in texts
    writer.join()
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "some" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    (folder := path.with_name("folder")).mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(folder, {"a": 2})
    assert sorted(path.parent.iterdir()) == [path, folder], "and no draft"


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "gone.json") is None
