"""A run in parts, and parts that go on from another run's weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoplab_platform.errors import CheckpointError, Stopped
from stoplab_platform.files import write_json
from stoplab_trainers.launch import execute
from stoplab_trainers.resuming import Leg
from support_runs import folder, identity, tiny


def test_two_legs_are_one_run(tmp_path: Path) -> None:
    whole = execute(tiny(), folder(tmp_path, "whole"), identity())
    first = folder(tmp_path, "first")
    half = execute(tiny(), first, identity(), leg=Leg(1))
    assert half.steps == 19
    assert half.metrics.keys() >= {"val/knn_top1", "train/loss"}
    assert not any(name.startswith(("test/", "init/", "pixels/")) for name in half.metrics)
    rest = execute(tiny(), folder(tmp_path, "second"), identity(), leg=Leg(2, first.root))
    assert rest.steps == 38
    assert rest.weights_sha256 == whole.weights_sha256
    assert rest.metrics["test/knn_top1"] == whole.metrics["test/knn_top1"]
    assert len({whole.run_digest, half.run_digest, rest.run_digest}) == 3


@pytest.mark.slow
def test_a_leg_may_go_on_with_other_settings_and_is_resumed_by_its_own_checkpoint(
    tmp_path: Path,
) -> None:
    first = folder(tmp_path, "first")
    execute(tiny(), first, identity(), leg=Leg(1))
    other, leg = tiny(positions__noise_std=1.0, optim__lr=5e-4), Leg(2, first.root)
    undisturbed = execute(other, folder(tmp_path, "undisturbed"), identity(), leg=leg)
    run, stop = folder(tmp_path, "stopped"), tmp_path / "stop.json"
    write_json(stop, {"intent": "PAUSED"})
    with pytest.raises(Stopped) as stopped:
        execute(other, run, identity(), stop_file=stop, leg=leg)
    assert stopped.value.step == 20
    stop.unlink()
    resumed = execute(other, run, identity(), stop_file=stop, leg=leg)
    assert resumed.weights_sha256 == undisturbed.weights_sha256
    assert resumed.run_digest == undisturbed.run_digest


def test_a_leg_after_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        execute(tiny(), folder(tmp_path), identity(), leg=Leg(2, tmp_path / "gone"))


def test_a_leg_after_half_a_run_is_refused(tmp_path: Path) -> None:
    first = folder(tmp_path, "first")
    execute(tiny(checkpoint__every_steps=10), first, identity(), leg=Leg(1))
    (first.checkpoints / "step-00000019" / "state.pt").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="is not the end"):
        execute(tiny(), folder(tmp_path), identity(), leg=Leg(2, first.root))


@pytest.mark.ray
@pytest.mark.slow
def test_legs_of_two_workers_are_one_run(tmp_path: Path) -> None:
    spec = tiny(compute__workers=2, compute__cpus_per_worker=0.5, evals=[])
    whole = execute(spec, folder(tmp_path, "whole"), identity())
    first = folder(tmp_path, "first")
    execute(spec, first, identity(), leg=Leg(1))
    rest = execute(spec, folder(tmp_path, "second"), identity(), leg=Leg(2, first.root))
    assert (rest.steps, rest.weights_sha256) == (whole.steps, whole.weights_sha256)
