"""Features of fixed images, the collapse alarm, and that watching changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import RunFolder, read_json, read_lines
from stoplab_platform.supervisor import judge
from stoplab_platform.tracking import MemoryTracker
from stoplab_trainers import checkpoint
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics import pictures, watching
from stoplab_trainers.diagnostics.alarm import Alarm, Collapsed
from stoplab_trainers.diagnostics.probe import (
    Look,
    Probe,
    features_stats,
    location_r2,
    rankme,
)
from stoplab_trainers.diagnostics.watching import Watching, leave_pictures
from stoplab_trainers.launch import execute
from stoplab_trainers.loop import Run, train
from stoplab_trainers.model.jepa import build_model
from support_runs import folder, identity, tiny

COLLAPSING: dict[str, Any] = {
    "model": {
        "encoder": "custom", "width": 32, "depth": 3, "heads": 2, "patch_size": 4,
        "predictor": {"width": 16, "depth": 2}, "init": "small",
    },
    "optim__lr": 0.1, "optim__start_lr": 0.1, "optim__ema": [0.9, 0.9],
    "evals": [], "optim__epochs": 2,
}  # fmt: skip
"""Loss 0.58 -> 0.007 in 38 steps: far too high a learning rate, and a target that follows."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class TestFeatures:
    def test_rankme_is_the_papers(self) -> None:
        features = gaussian(40, 8)
        values = np.linalg.svd(features.double().numpy(), compute_uv=False)
        shares = values / values.sum() + 1e-7
        assert rankme(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
        assert rankme(torch.ones(40, 8)) == pytest.approx(1, abs=1e-3)

    def test_location_is_read_where_it_is_written(self) -> None:
        places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"))
        written = places.flatten(1).T.expand(8, -1, -1)
        assert location_r2(written + 0.01 * gaussian(8, 16, 2)) > 0.99
        assert location_r2(gaussian(8, 16, 2)) < 0.2

    def test_the_start_has_not_drifted(self) -> None:
        look = Look(gaussian(20, 8), gaussian(8, 16, 8))
        assert features_stats(look, look)["collapse/target_drift"] == 0
        moved = Look(2 * look.pooled, look.patches)
        assert features_stats(moved, look)["collapse/target_drift"] == pytest.approx(1)

    def test_features_that_are_no_numbers_are_not_measured(self) -> None:
        look = Look(gaussian(20, 8), gaussian(8, 16, 8))
        assert features_stats(Look(look.pooled / 0, look.patches), look) == {}

    def test_a_look_normalises_tokens_as_targets_are(self, digits: ShardSet) -> None:
        found = Probe.of(digits, 16).look(build_model(tiny()).encoder)
        assert found.pooled.shape == (256, 16)
        assert found.patches.shape == (64, 16, 16)
        assert torch.allclose(found.patches.var(dim=-1, unbiased=False), torch.ones(64, 16),
                              atol=1e-2)  # fmt: skip
        assert torch.allclose(found.patches.mean(dim=1), found.pooled[:64], atol=1e-5)


class TestAlarm:
    START = {"collapse/feature_std": 0.8, "collapse/rankme": 11.0}

    def test_a_tenth_of_the_start_is_the_limit(self) -> None:
        alarm = Alarm(self.START)
        assert alarm.heard(1, {"collapse/feature_std": 0.081}) is None
        found = alarm.heard(2, {"collapse/feature_std": 0.079})
        assert found is not None
        assert found.message == (
            "the features collapsed: collapse/feature_std is 0.079 at step 2, untrained it was 0.8"
        )

    def test_a_rank_is_counted_from_one(self) -> None:
        alarm = Alarm(self.START)
        assert alarm.heard(1, {"collapse/rankme": 2.1}) is None
        assert alarm.heard(1, {"collapse/rankme": 1.9}) is not None

    def test_what_was_not_measured_says_nothing(self) -> None:
        assert Alarm(self.START).heard(1, {"train/loss": 0.0}) is None


class TestWatching:
    def test_a_run_is_bit_equal_with_and_without_it(self, digits: ShardSet, tmp_path: Path) -> None:
        torch.set_num_threads(1)
        alone, watched = Run(tiny(), digits), Run(tiny(), digits)
        train(alone, [])
        hook = Watching(watched, started(), RunFolder(tmp_path))
        hook._every = 5
        train(watched, [hook])
        for one, other in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
            assert torch.equal(one, other)
        for one, other in zip(alone.target.parameters(), watched.target.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_it_measures_at_the_start_now_and_then_and_at_the_end(
        self, digits: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "LEAST_STEPS", 15)
        tracker = started()
        run = Run(tiny(), digits)
        train(run, [Watching(run, tracker, RunFolder(tmp_path))])
        points = {step for step, _ in tracker.history["collapse/rankme"]}
        assert points == {0, 19, 38}  # an epoch is longer than 15 steps
        assert {step for step, _ in tracker.history["stop/landing_patches"]} == {19, 38}

    def test_the_baseline_is_the_same_after_a_resume(
        self, digits: ShardSet, tmp_path: Path
    ) -> None:
        run = Run(tiny(optim__epochs=1), digits)
        first = Watching(run, started(), RunFolder(tmp_path))
        train(run, [first])
        saved = checkpoint.save(
            tmp_path / "c", step=run.step, tensors=run.state(), identity={}, keep=1
        )
        again = Run(tiny(optim__epochs=1), digits)
        again.load(*checkpoint.load(saved, identity=None))
        second = Watching(again, started(), RunFolder(tmp_path))
        assert second._alarm._start == first._alarm._start
        assert second._look(again) == first._look(run) == first.metrics


def test_a_picture_that_fails_costs_no_other(
    digits: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fails(*_: Any) -> None:
        raise ValueError("no room for labels")

    monkeypatch.setattr(pictures, "positions_picture", fails)
    tracker = started()
    leave_pictures(Run(tiny(), digits), RunFolder(tmp_path), tracker)
    kept = [path.name for _, path in tracker.artifacts]
    assert kept == ["coverage.png", "predictions.png"]  # no metrics: no history
    assert "could not be drawn" in caplog.text
    assert "no room for labels" in caplog.text


class TestCollapse:
    @pytest.mark.invariant(24)
    def test_a_collapsing_run_says_so_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = folder(tmp_path)
        with caplog.at_level(logging.WARNING, "stoplab.train"):
            summary = execute(tiny(**COLLAPSING), run, identity())
        assert summary.metrics["train/loss"] < 0.01  # and looks as if it had learned
        said = [r.message for r in caplog.records if "collapsed" in r.message]
        assert len(said) == 1
        told = read_json(run.alarm)
        assert told["measure"] == "collapse/feature_std"
        assert told["message"] == said[0]
        tags = [line["tags"] for line in read_lines(run.spool) if line["verb"] == "tags"]
        assert {"stoplab.collapsed": f"step {told['step']}, collapse/feature_std"} in tags
        assert read_json(run.progress)["warning"] == said[0]

    def test_by_the_spec_the_run_stops(self, tmp_path: Path) -> None:
        run, spec = folder(tmp_path), tiny(collapse="stop", **COLLAPSING)
        for _ in range(2):  # going on from a checkpoint does not help
            with pytest.raises(Collapsed, match=r"the features collapsed: .*, untrained it was"):
                execute(spec, run, identity())
        assert not run.summary.exists()

    def test_off_says_nothing(self, tmp_path: Path) -> None:
        run = folder(tmp_path)
        execute(tiny(collapse="off", **COLLAPSING), run, identity())
        assert not run.alarm.exists()

    def test_a_healthy_run_is_left_alone(self, tmp_path: Path) -> None:
        run = folder(tmp_path)
        execute(tiny(evals=[]), run, identity())
        assert not run.alarm.exists()
        assert read_json(run.progress)["warning"] is None
        lines = read_lines(run.spool)
        kept = [Path(line["path"]).name for line in lines if line["verb"] == "artifact"]
        pictures = ["coverage.png", "positions.png", "predictions.png", "history.png"]
        assert kept == ["spec.yaml", "masks.png", *pictures]
        first = [line["values"] for line in lines if line["verb"] == "metrics" and not line["step"]]
        assert {name for values in first for name in values} == {
            "mask/context_coverage", "mask/target_coverage", "mask/shortest_context",
            "collapse/rankme", "collapse/pooled_std", "collapse/target_drift",
            "position/location_r2",
        }  # fmt: skip

    def test_features_of_places_alone_are_a_collapse_too(self, tmp_path: Path) -> None:
        """Weights decay to nothing: tokens still differ by their places, images no longer do."""
        run = folder(tmp_path)
        spec = tiny(
            evals=[], optim__epochs=4, optim__lr=1e-2, optim__ema=[0.9, 0.9],
            optim__weight_decay=[30.0, 30.0],
        )  # fmt: skip
        summary = execute(spec, run, identity())
        assert summary.metrics["collapse/feature_std"] > 0.2
        assert read_json(run.alarm)["measure"] in ("collapse/pooled_std", "collapse/rankme")

    def test_a_job_that_ends_so_has_a_reason_of_its_own(self) -> None:
        words = "stoplab_trainers.diagnostics.alarm.Collapsed: the features collapsed: …"
        result = judge(1, 1, words, None, words=words)
        assert result.reason_code is ReasonCode.COLLAPSED
        assert "lower optim.lr" in str(result.message)


def started() -> MemoryTracker:
    """A tracker that listens."""
    tracker = MemoryTracker()
    tracker.start(identity(), {})
    return tracker
