"""`stoplab inspect` as a process of its own, on runs of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from stoplab_platform.errors import CheckpointError, DataError, SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_atomic
from stoplab_platform.paths import Home, JobFolder, RunFolder
from stoplab_trainers import checkpoint, inspecting
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.launch import execute
from stoplab_trainers.loop import Run
from support_runs import identity, tiny

PICTURES = {"masks.png", "coverage.png", "positions.png", "predictions.png", "history.png"}
JOB = "j_inspected"


def saved(run: RunFolder, cache: Path, *, gain: float = 1.0, **changes: Any) -> Path:
    """A run's folder as it is before its first step; the checkpoint's path.

    ``gain``: of the student's final norm.
    """
    spec = tiny(evals=[], **changes)
    torch.set_num_threads(1)
    begun = Run(spec, ShardSet.open("digits", cache))
    with torch.no_grad():
        begun.model.encoder.vit.norm.weight *= gain
    write_atomic(run.spec, spec.to_yaml())
    made = checkpoint.save(run.checkpoints, step=0, tensors=begun.state(), identity={}, keep=1)
    return Path(str(made))


@pytest.fixture
def job(home: Path) -> JobFolder:
    """A job with a checkpoint, and no history."""
    folder = Home(home).job(JOB)
    saved(folder.run("run"), home / "cache")
    write_atomic(folder.spec, tiny(evals=[]).to_yaml())
    return folder


def inspect(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`stoplab inspect`, as a user starts it."""
    command = [sys.executable, "-m", "stoplab_api.cli.main", "inspect", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ})


def not_json(name: str) -> None:
    """For what `json` reads although no other program would."""
    raise AssertionError(f"{name} is no JSON")


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG that shows something."""
    with Image.open(path) as picture:
        return picture.format == "PNG" and len(picture.convert("L").getcolors() or ()) > 10


class TestCommand:
    def test_a_jobs_pictures_page_and_numbers(self, home: Path, tmp_path: Path) -> None:
        spec = tiny(evals=[], optim__epochs=1)
        execute(spec, Home(home).job(JOB).run("run"), identity())
        write_atomic(Home(home).job(JOB).spec, spec.to_yaml())
        done = inspect(JOB, "--draws", "4", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / f"inspect-{JOB}-step-19"
        assert {path.name for path in folder.iterdir()} == PICTURES | {
            "index.html", "diagnostics.json",
        }  # fmt: skip
        assert all(is_picture(folder / name) for name in PICTURES)
        page = (folder / "index.html").read_text()
        assert all(f'src="{name}"' in page for name in PICTURES)
        assert "step 19" in page
        numbers = read_json(folder / "diagnostics.json")
        assert numbers["run"]["images"] == "the first of the run's own data"
        assert numbers["absent"] == []
        assert numbers["predictions"]["draws"] == 4
        assert numbers["predictions"]["spread"] > 0
        assert sum(numbers["landing"]["shares"][0]) == pytest.approx(1)
        assert f"{numbers['noise']['stop/landing_stays']:.1%}" in done.stdout
        assert str(folder / "index.html") in done.stdout.splitlines()[-1]

    def test_json_is_the_document(
        self, job: JobFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        photographs = tmp_path / "photographs"
        photographs.mkdir()
        for number, pixels in enumerate(load_sample_images().images):
            Image.fromarray(pixels).save(photographs / f"{number}.jpg")
        words = ["--json", "--out", str(tmp_path / "x"), "--images", str(photographs)]
        assert inspecting.main([str(next(job.run("run").checkpoints.iterdir())), *words]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == read_json(tmp_path / "x" / "diagnostics.json")
        assert told["run"]["images"] == f"{photographs}/0.jpg, {photographs}/1.jpg"
        assert len(told["predictions"]["error_by_patch"]) == 2
        assert [text.partition(":")[0] for text in told["absent"]] == [
            "Over training", "Rank, spread and drift of features",
        ]  # fmt: skip

    def test_what_is_no_run_is_bad_input(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert inspecting.main(["j_nothing"]) == Exit.BAD_INPUT
        assert capsys.readouterr().err.startswith("'j_nothing' is no folder, no job in ")


class TestPlace:
    """What is there already."""

    def test_files_that_are_there_stay(self, job: JobFolder, tmp_path: Path) -> None:
        (tmp_path / "index.html").write_text("mine")
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(DataError, match=r"index\.html in .* would be replaced; --force does"):
            inspecting.inspect_run(JOB, tmp_path, [], 2)
        assert {path.name for path in tmp_path.iterdir()} >= {"index.html", "notes.txt"}
        assert not set(tmp_path.glob("*.png"))
        assert (tmp_path / "index.html").read_text() == "mine"
        inspecting.inspect_run(JOB, tmp_path, [], 2, force=True)
        assert (tmp_path / "index.html").read_text() != "mine"
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_no_picture_of_an_earlier_run_is_left(self, home: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "positions.png").write_bytes(b"of another run")
        path = saved(Home(home).job(JOB).run("run"), home / "cache",
                     positions__kind="deterministic")  # fmt: skip
        with pytest.raises(DataError, match=r"positions\.png in"):
            inspecting.inspect_run(str(path), out, [], 2)
        inspecting.inspect_run(str(path), out, [], 2, force=True)
        assert not (out / "positions.png").exists()

    def test_a_look_that_fails_leaves_nothing_behind(
        self, job: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(inspecting, "page", fails)
        with pytest.raises(OSError, match="no space"):
            inspecting.inspect_run(JOB, tmp_path / "place" / "out", [], 2)
        assert not list((tmp_path / "place").iterdir())

    def test_a_file_is_no_folder(self, job: JobFolder, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file is no folder"):
            inspecting.inspect_run(JOB, tmp_path / "file", [], 2)


class TestRuns:
    def test_deterministic_positions_say_what_does_not_apply(
        self, home: Path, tmp_path: Path
    ) -> None:
        run = Home(home).job(JOB).run("run")
        saved(run, home / "cache", positions__kind="deterministic")
        lines = [
            {"at": step, "verb": "metrics", "step": step, "values": {"stop/a_norm": value}}
            for step, value in ((1, 1.0), (2, nan))
        ]
        write_atomic(run.spool, "".join(json.dumps(line) + "\n" for line in lines))
        document, folder = inspecting.inspect_run(str(run.root), tmp_path / "out", [], 4)
        assert {path.name for path in folder.glob("*.png")} == PICTURES - {"positions.png"}
        assert document["history"] == {"stop/a_norm": [[1, 1.0], [2, None]]}
        assert "spectrum" not in document
        assert document["predictions"]["spread"] is None
        assert document["predictions"]["draws"] == 1
        assert len(document["absent"]) == 2
        json.loads((folder / "diagnostics.json").read_text(), parse_constant=not_json)
        page = (folder / "index.html").read_text()
        assert "These positions take no noise" in page
        assert "noise_to_signal" not in page  # its 0 is no measurement

    def test_a_run_that_predicts_pixels(self, home: Path, tmp_path: Path) -> None:
        run = Home(home).job(JOB).run("run")
        random = {"kind": "random", "ratio": 0.5}
        path = saved(run, home / "cache", objective={"kind": "mae"}, masking=random)
        document, _ = inspecting.inspect_run(str(path), tmp_path / "out", [], 4)
        assert document["predictions"]["error"] > 0
        assert document["predictions"]["spread"] > 0
        assert 0 < document["predictions"]["error_of_zero"] < 1.01  # a bare patch has no size

    def test_noise_is_measured_against_what_the_encoder_makes_of_the_images(
        self, home: Path, tmp_path: Path
    ) -> None:
        found = {}
        for gain in (1.0, 3.0):
            run = Home(home).job(f"{JOB}_{gain:g}").run("run")
            path = saved(run, home / "cache", gain=gain)
            document, _ = inspecting.inspect_run(str(path), tmp_path / f"{gain:g}", [], 2)
            found[gain] = document["noise"]["stop/noise_to_signal"]
        assert found[3.0] == pytest.approx(found[1.0] / 3, rel=1e-3)

    def test_weights_that_are_no_numbers_are_refused(self, home: Path, tmp_path: Path) -> None:
        path = saved(Home(home).job(JOB).run("run"), home / "cache", gain=nan)
        said = r"not all finite numbers.*: model\.encoder\.vit\.norm\.weight"
        with pytest.raises(CheckpointError, match=said):
            inspecting.inspect_run(str(path), tmp_path / "out", [], 2)
        assert not (tmp_path / "out").exists()

    def test_without_the_runs_data_it_draws_on_sample_photographs(
        self, job: JobFolder, tmp_path: Path
    ) -> None:
        run = job.run("run")
        text = run.spec.read_text().replace("train: digits", f"train: {tmp_path}/gone-0.tar")
        write_atomic(run.spec, text)
        document, _ = inspecting.inspect_run(JOB, tmp_path / "out", [], 2)
        assert "sample photographs" in document["run"]["images"]
        assert "features" not in document
        assert "history" not in document

    @pytest.mark.parametrize(
        ("images", "draws", "wrong"), [(40, 4, "40 were given"), (1, 1, "1 must be from 2")]
    )
    def test_too_much_is_refused(
        self, job: JobFolder, tmp_path: Path, images: int, draws: int, wrong: str
    ) -> None:
        files = [tmp_path / "x.png"] * images
        with pytest.raises(SpecError, match=wrong):
            inspecting.inspect_run(JOB, tmp_path / "out", files, draws)
