"""Features of fixed images, the collapse alarm, and that watching changes nothing."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stoplab_platform.files import read_json, read_lines
from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import RunFolder
from stoplab_platform.supervisor import judge
from stoplab_platform.tracking import MemoryTracker, SpoolTracker
from stoplab_trainers import checkpoint
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics import pictures, watching
from stoplab_trainers.diagnostics.alarm import MOVED, Alarm, Collapsed, Finding
from stoplab_trainers.diagnostics.probe import (
    Look,
    Probe,
    features_stats,
    location_r2,
    rankme,
)
from stoplab_trainers.diagnostics.telling import tell
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

    def test_what_was_learned_since_counts_as_well(self) -> None:
        """A published start that is small has a rank of 1.56: nothing is a tenth of that."""
        rank, alarm = "collapse/rankme", Alarm({"collapse/rankme": 1.56})
        assert alarm.heard(100, {rank: 1.2}) is None
        assert alarm.heard(200, {rank: 80.0}) is None
        found = alarm.heard(300, {rank: 1.2})
        assert found is not None
        assert (found.kind, found.start, found.best) == ("collapsed", 1.56, 80.0)
        assert found.message.endswith("untrained it was 1.56, and 80 since")
        again = Alarm({rank: 1.56}, {rank: [1.56, 80.0, math.nan, 60.0]})
        assert again.heard(300, {rank: 1.2}) is not None, "a run that goes on knows it"
        assert again.heard(300, {rank: 9.5}) is None

    def test_a_target_that_stands_still_or_leaps(self) -> None:
        alarm = Alarm(self.START)
        for step, moved in ((100, 0.9), (200, 0.06), (300, 0.05)):
            assert alarm.heard(step, {MOVED: moved}) is None
        leapt, small = (
            Alarm(self.START, {MOVED: [0.9, usual, usual]}).heard(400, {MOVED: moved})
            for usual, moved in ((0.05, 0.55), (0.03, 0.45))
        )
        assert leapt is not None
        assert small is None
        assert "the target leapt: by step 400 its features moved by 0.55" in leapt.message
        still = alarm.heard(400, {MOVED: 0.0})
        assert still is not None
        assert (still.kind, still.measure) == ("drifted", MOVED)


class TestTelling:
    def test_each_kind_once_and_the_newest_in_front(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run, tracker = RunFolder(tmp_path), started()
        found = [
            Finding(kind, step, "m", 0.0, None, None, f"{kind} at {step}")
            for kind, step in (("starved", 0), ("collapsed", 300), ("collapsed", 310))
        ]  # fmt: skip
        for one in found:
            tell(one, run, tracker)
        assert [r.message for r in caplog.records] == ["starved at 0", "collapsed at 300"]
        told = read_json(run.alarm)
        assert told["message"] == "collapsed at 300"
        assert [one["message"] for one in told["earlier"]] == ["starved at 0"]
        assert tracker.tagged["stoplab.starved"] == "step 0, m"
        tell(Finding("collapsed", 200, "m", 0.0, None, None, "collapsed at 200"), run, tracker)
        told = read_json(run.alarm)
        assert told["message"] == "collapsed at 200", "from a checkpoint before it"
        assert [one["message"] for one in told["earlier"]] == ["starved at 0"]

    def test_masks_that_starve_patches(self, tmp_path: Path) -> None:
        run = folder(tmp_path)
        spec = tiny(
            evals=[], data__image_size=32, optim__epochs=1, masking__sampler="official",
            collapse="stop",
        )  # fmt: skip
        execute(spec, run, identity())
        told = read_json(run.alarm)
        assert (told["kind"], told["step"]) == ("starved", 0)
        assert told["message"].startswith("the masks starve the run: 15 of 64 patches are never")
        assert read_json(run.progress)["warning"] == told["message"]
        tags = [line["tags"] for line in read_lines(run.spool) if line["verb"] == "tags"]
        assert {"stoplab.starved": f"step 0, {told['measure']}"} in tags


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
        moves = [value for _, value in tracker.history["collapse/target_moved"]]
        assert len(moves) == 2
        assert all(0 < value < 1 for value in moves)

    def test_a_target_that_never_moves_is_told(
        self, digits: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "LEAST_STEPS", 15)
        run = Run(tiny(optim__ema=[1.0, 1.0], collapse="stop"), digits)
        train(run, [Watching(run, started(), RunFolder(tmp_path))])
        told = read_json(RunFolder(tmp_path).alarm)
        assert (told["kind"], told["step"], told["value"]) == ("drifted", 19, 0.0)

    def test_a_run_that_goes_on_knows_the_most_it_had(
        self, digits: ShardSet, tmp_path: Path
    ) -> None:
        home, run = folder(tmp_path), Run(tiny(optim__epochs=1), digits)
        tracker = SpoolTracker(home, "")
        tracker.start(identity(), {})
        for step, rank in ((5, 80.0), (10, 200.0)):
            tracker.metrics(step, {"collapse/rankme": rank, "collapse/target_moved": 0.5})
        tracker.close()
        run.step = 7
        hook = Watching(run, started(), home)
        assert hook._alarm._best["collapse/rankme"] == 80.0, "what came after it, is to come again"
        assert hook._alarm._moves == [0.5]

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
        found = [
            hook._measured(one, hook._probe.look(one.target))
            for hook, one in ((first, run), (second, again))
        ]
        assert found[0] == found[1] == first.metrics


def test_a_picture_that_fails_costs_no_other(
    digits: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fails(*_: Any) -> None:
        raise ValueError("no room for labels")

    monkeypatch.setattr(pictures, "positions_picture", fails)
    tracker = started()
    run = Run(tiny(), digits)
    leave_pictures(run, run.model.state_dict(), RunFolder(tmp_path), tracker)
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

    @pytest.mark.slow
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

    @pytest.mark.slow
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
