"""The demo: what it asks for, what it makes of the answer, and (slow) the whole path."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from stoplab_api import demo
from stoplab_api.answers import TrialBody
from stoplab_platform.errors import SettingsError
from stoplab_platform.specs import RunSpec
from support_lab import Stoplab, until


def test_the_comparison() -> None:
    spec = demo.comparison_spec(3, num_cpus=2)
    assert spec.reference == "deterministic"
    assert list(spec.arms) == ["deterministic", "stochastic"]
    assert spec.seeds == (0, 1, 2)
    assert spec.primary.metric == "test/knn_top1"
    assert spec.limits.max_concurrent == 2
    assert spec.arm("deterministic", 1).positions.kind == "deterministic"
    assert spec.arm("stochastic", 1).positions.kind == "stochastic"
    assert demo.comparison_spec(3, num_cpus=64).limits.max_concurrent == 6
    assert demo.comparison_spec(2, num_cpus=1).limits.max_concurrent == 1


def test_the_config_comes_with_the_trainers() -> None:
    assert "digits" in demo.config("digits.yaml").read_text()


class TestHome:
    def test_fresh(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert demo.fresh_settings(Path("new")).home == tmp_path / "new"
        made = demo.fresh_settings(None).home
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        made.rmdir()

    def test_used(self, tmp_path: Path) -> None:
        (tmp_path / "something").touch()
        with pytest.raises(SettingsError, match="not empty"):
            demo.fresh_settings(tmp_path)

    def test_somebody_elses_store(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("STOPLAB_DATABASE_URL", "postgresql://shared/db")
        with pytest.raises(SettingsError, match="STOPLAB_DATABASE_URL"):
            demo.fresh_settings(tmp_path / "new")


def test_means_are_named_as_in_the_comparison() -> None:
    trials = [
        _trial("deterministic", {"test/knn_top1": 0.7, "init/knn_top1": 0.6, "val/knn_top1": 1}),
        _trial("deterministic", {"test/knn_top1": 0.8, "init/knn_top1": 0.62}),
        _trial("stochastic", {"test/knn_top1": 0.5, "pixels/knn_top1": 0.98}),
    ]
    means = demo._means(trials)
    assert means["arms"]["deterministic"] == {"test/knn_top1": pytest.approx(0.75)}
    assert means["arms"]["stochastic"] == {"test/knn_top1": 0.5}
    assert means["random_init"] == {"test/knn_top1": pytest.approx(0.61)}
    assert means["raw_pixels"] == {"test/knn_top1": 0.98}


def _trial(arm: str, metrics: dict[str, float]) -> TrialBody:
    return TrialBody(
        id=arm, index=0, arm=arm, point={}, seed=0, state="SUCCEEDED", metrics=metrics,
        run_id=None, run_digest=None, error=None, started_at=None, finished_at=None,
    )  # fmt: skip


@pytest.mark.ray
def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    lab = Stoplab(tmp_path / "demo", tmp_path)
    try:
        with lab.start("demo", "--home", lab.home) as process:
            until(lambda: lab.lab().get("pids", {}).keys() == {"ray", "mlflow", "api"})
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=120)
        assert process.returncode not in (0, None), err
        assert lab.left() == []
        assert not (lab.home / "lab.json").exists()
    finally:
        lab.clean()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_the_whole_path(tmp_path: Path) -> None:
    """Three seeds learn something, the document is whole, the results outlive the lab."""
    lab = Stoplab(tmp_path / "demo", tmp_path)
    try:
        told = lab.json("demo", "--home", lab.home, timeout_s=1400)
        assert lab.left() == []
    finally:
        lab.clean()
    comparison, metric = told["comparison"], "test/knn_top1"
    assert comparison["metric"] == metric
    assert comparison["n_blocks"] == 3
    assert comparison["reference"] == "deterministic"
    gain = comparison["arms"]["deterministic"]["mean"] - told["random_init"][metric]
    assert gain >= 0.05
    assert told["raw_pixels"][metric] > 0.95
    assert {metric, "test/linear_top1"} <= told["random_init"].keys() == told["raw_pixels"].keys()
    assert told["job_id"].startswith("j_")
    assert told["elapsed_s"] > 0
    runs = _runs(told["mlflow"]["tracking_uri"], told["mlflow"]["experiment_id"])
    assert told["mlflow"]["parent_run_id"] in runs
    assert len(runs) == 7
    assert set(runs.values()) == {"FINISHED"}
    spec = RunSpec.model_validate(
        json.loads(lab.run("spec", "show", demo.config("digits.yaml"), "--json"))
    )
    assert spec.grid == 4
    assert os.path.isdir(lab.home)


def _runs(uri: str, experiment_id: str) -> dict[str, str]:
    from stoplab_platform.tracking import client

    assert uri.startswith("sqlite:///")
    found = client(uri).search_runs([experiment_id])
    return {run.info.run_id: run.info.status for run in found}
