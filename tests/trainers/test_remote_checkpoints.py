"""A run whose checkpoints lie in S3, behind a proxy that fails: all who read them find them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stoplab_platform.elsewhere import places
from stoplab_platform.errors import DataAway, DataError, Stopped
from stoplab_platform.files import read_lines, write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.references import Found
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs.weights import Start
from stoplab_trainers import checkpoint
from stoplab_trainers.launch import execute
from stoplab_trainers.model.jepa import build_model, target_of
from stoplab_trainers.resuming import Leg
from stoplab_trainers.summary import summary_of
from stoplab_trainers.weights.start import start_from
from stoplab_trainers.weights.trained import open_trained
from stoplab_trainers.writing import MOST_LOST, Writer
from support_faults import Faults
from support_invariants import goes_on, has_logged
from support_runs import folder, identity, tiny
from support_s3 import BUCKET, bucket
from support_store import wait_for
from support_stores import SECRET, Bucket, failing, options

EVERY = 7
REMOTE: dict[str, Any] = {"checkpoint__url": f"s3://{BUCKET}/runs", "checkpoint__storage": SECRET}
QUICK: dict[str, Any] = {"evals": [], "checkpoint__every_epochs": None}


@pytest.fixture
def proxy(s3: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with failing(s3, monkeypatch) as server:
        yield server
    files = bucket(s3)
    if files.exists(f"{BUCKET}/runs"):
        files.rm(f"{BUCKET}/runs", recursive=True)


def test_a_run_that_is_stopped_goes_on_from_there(
    proxy: Faults, tmp_path: Path, home: Path, s3: int
) -> None:
    whole = execute(tiny(**QUICK), folder(tmp_path, "whole"), identity())
    spec, run = tiny(**QUICK, **REMOTE, checkpoint__every_steps=EVERY), folder(tmp_path)
    stop = tmp_path / "stop.json"

    def ask(progress: Any) -> None:
        if progress["step"] > 2 * EVERY:
            write_json(stop, {"intent": "PAUSED", "deadline_s": 60})

    proxy.write_faults.extend([500, "slow", "cut", 503])
    with pytest.raises(Stopped) as stopped:
        execute(spec, run, identity(), stop_file=stop, on_progress=ask)
    stop.unlink()
    assert not run.checkpoints.exists()
    at = f"{BUCKET}/runs/j_test/run"
    assert f"{at}/step-{stopped.value.step:08d}/manifest.json" in bucket(s3).find(at)
    proxy.faults.extend([500, "slow", "cut"])
    resumed = execute(spec, run, identity(), stop_file=stop)
    assert f"resumed at step {stopped.value.step}" in run.rank_log(0).read_text()
    assert not proxy.faults
    assert not proxy.write_faults
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.run_digest == whole.run_digest, "where they lie changes no weight"
    told = [line["values"] for line in read_lines(run.spool) if line["verb"] == "metrics"]
    assert any("checkpoint/write_s" in values for values in told)
    for file in (run.spool, run.elsewhere, run.rank_log(0), run.spec):
        assert "password" not in file.read_text()
    assert_found_by_all(run, tmp_path, stopped.value.step)


def assert_found_by_all(run: RunFolder, tmp_path: Path, stopped_at: int) -> None:
    """Evaluations and exports, other runs' starts, the look for a sound one."""
    summary = summary_of(run)
    assert summary is not None
    trained = open_trained(Found(run))
    assert trained.path == f"s3://{BUCKET}/runs/j_test/run/step-{summary.steps:08d}"
    model = build_model(tiny(seed=9))
    source = start_from(Start(path=str(run.root)), model, target_of(model.encoder))
    assert source.layout == "checkpoint"
    assert torch.equal(
        model.state_dict()["encoder.vit.norm.weight"],
        trained.model.state_dict()["encoder.vit.norm.weight"],
    )
    found = checkpoint.sound(checkpoint.stores(run))
    assert found is not None
    assert found.step == summary.steps > stopped_at


def test_a_leg_goes_on_from_another_runs(proxy: Faults, tmp_path: Path) -> None:
    spec = tiny(**QUICK, **REMOTE)
    whole = execute(spec, folder(tmp_path, "whole"), identity())
    first = folder(tmp_path, "first")
    execute(spec, first, identity(), leg=Leg(1))
    rest = execute(spec, folder(tmp_path, "second"), identity(), leg=Leg(2, first.root))
    assert rest.weights_sha256 == whole.weights_sha256
    urls = [places(folder(tmp_path, name)).all[0].url for name in ("first", "second")]
    assert urls == [f"s3://{BUCKET}/runs/j_test/{name}" for name in ("first", "second")]


def test_a_place_that_cannot_be_written_is_told_before_the_first_step(
    proxy: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder(tmp_path)
    wrong = {**REMOTE, "checkpoint__url": "s3://nowhere/runs"}
    with pytest.raises(DataError, match="s3://nowhere/runs/j_test/run"):
        execute(tiny(**wrong), run, identity())
    monkeypatch.setenv("STOPLAB_DATA_SCHEMES", "file,https")
    with pytest.raises(DataError, match="URLs of file, https can be read"):
        execute(tiny(**REMOTE), run, identity())
    monkeypatch.setenv("STOPLAB_DATA_ROOTS", str(tmp_path / "sets"))
    with pytest.raises(DataError, match="outside of what STOPLAB_DATA_ROOTS allows"):
        execute(tiny(checkpoint__url=str(tmp_path / "saved")), run, identity())
    assert not run.spool.exists()


def test_a_folder_elsewhere_is_a_place_too(tmp_path: Path) -> None:
    run = folder(tmp_path)
    execute(tiny(**QUICK, checkpoint__url=f"file://{tmp_path}/saved"), run, identity())
    assert len(list((tmp_path / "saved" / "j_test" / "run").glob("step-*/state.pt"))) == 1
    assert open_trained(Found(run)).path.startswith(f"{tmp_path}/saved/")


def test_a_slow_store_holds_the_training_up_and_loses_nothing(
    s3: int, proxy: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that takes longer than an interval: the next save waits, says so, and counts it."""
    box = Bucket(s3, proxy, tmp_path / "cache")
    writer, begun = Writer([box.store], {"run": "x"}), threading.Event()
    large = {"w": torch.zeros(5 << 20)}  # 20 MB: not waited for
    proxy.may.clear()
    writer.begin(1, large, keep=9)
    assert writer.ended() == [], "the training goes on"

    def save_again() -> None:
        begun.set()
        writer.begin(2, large, keep=9)

    second = threading.Thread(target=save_again)
    with caplog.at_level(logging.WARNING):
        second.start()
        assert begun.wait(60)
        second.join(0.2)
        assert second.is_alive(), "it waits"
        proxy.may.set()
        second.join(60)
    assert "for the checkpoint of step 1 to be written" in caplog.text
    writer.wait()
    first, last = writer.ended()
    assert (first.step, last.step) == (1, 2)
    assert last.wait_s >= 0.1
    assert first.write_s >= last.wait_s / 2
    assert sorted(box.store.names()) == ["step-00000001", "step-00000002"]
    writer.close()


def test_a_store_that_is_away_for_a_while_ends_no_run(
    s3: int,
    proxy: Faults,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("stoplab_platform.remote.TRIES", 1)
    box = Bucket(s3, proxy, tmp_path / "cache")
    writer, small = Writer([box.store], {"run": "x"}), {"w": torch.zeros(3)}
    writer.begin(1, small, keep=9)
    writer.wait()
    proxy.write_faults.extend([503] * MOST_LOST)
    for step in range(2, 1 + MOST_LOST):
        writer.begin(step, small, keep=9)
        written = writer._written
        assert written is not None
        written.exception(60)
        writer.check()
        assert f"OF STEP {step} IS NOT SAVED" in caplog.text
    writer.begin(9, small, keep=9)
    with pytest.raises(DataAway):
        writer.wait()
    writer.begin(10, small, keep=9)
    writer.close()
    assert sorted(box.store.names()) == ["step-00000001", "step-00000010"]


START = (
    "import sys; from stoplab_trainers import hooks, main\n"
    "from stoplab_platform import remote\n"
    "remote.FIRST_S = 0.01; hooks.PROGRESS_S = 0\n"
    "sys.exit(main.main())"
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_costs_an_interval_and_no_bit_of_the_weights(
    proxy: Faults, tmp_path: Path, home: Path
) -> None:
    """Trained, killed and resumed from S3 through 500s, slow answers and cut connections."""
    Secrets(Settings()).set("bucket", json.dumps(options(proxy, answer_s=20)))
    changes = {**QUICK, "optim__epochs": 4, "checkpoint__every_steps": EVERY}
    whole = execute(tiny(**changes), folder(tmp_path, "whole"), identity())
    path = tmp_path / "spec.yaml"
    path.write_text(tiny(**changes, **REMOTE).to_yaml())
    run = RunFolder(home / "jobs" / "j_killed" / "runs" / "run")
    proxy.write_faults.extend([500, "slow", "cut", "pass", 503, "slow", "cut"] * 2)
    process = main(path, home)
    try:
        wait_for(lambda: has_logged(run) > 3 * EVERY or process.poll() is not None, "steps", 900)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    killed_at = has_logged(run)
    proxy.write_faults.extend([500, "slow", "cut"])
    proxy.faults.extend([500, "slow", "cut", 503])
    assert main(path, home).wait(900) == 0
    # A write that takes longer than a second is not waited for: at most the next interval passes.
    goes_on(run, killed_at, EVERY, beside=EVERY)
    assert "resumed at step" in run.rank_log(0).read_text()
    assert not proxy.faults
    resumed = summary_of(run)
    assert resumed is not None
    assert resumed.weights_sha256 == whole.weights_sha256
    print(f"killed at {killed_at}; {json.dumps(resumed.weights_sha256)} as undisturbed")


def main(spec: Path, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(spec)],
        env={**os.environ, "STOPLAB_JOB_ID": "j_killed", "STOPLAB_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
