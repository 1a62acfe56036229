"""The loop: what a run is fed, what it reports, and that it resumes bit for bit."""

from __future__ import annotations

import weakref
from itertools import islice
from pathlib import Path

import pytest
import torch

from stoplab_platform.specs import RunSpec
from stoplab_trainers import checkpoint, loop
from stoplab_trainers.data.loader import Batch
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, StepReport, steps, train
from stoplab_trainers.step import Done, train_step
from support_runs import tiny


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


def started(spec: RunSpec, digits: ShardSet) -> Run:
    torch.set_num_threads(1)
    return Run(spec, digits)


def take(run: Run, count: int) -> list[StepReport]:
    """The next steps; the generator is closed behind them."""
    generator = steps(run)
    try:
        return list(islice(generator, count))
    finally:
        generator.close()


def assert_same_state(one: object, other: object) -> None:
    """Equal to the bit, through dictionaries and lists."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same_state(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_state(a, b)
    else:
        assert one == other


def test_a_run_ends_after_all_its_steps_and_learns(digits: ShardSet) -> None:
    run = started(tiny(), digits)
    reports = take(run, 1000)
    assert len(reports) == run.total_steps == 2 * (1257 // 64)
    assert [r.step for r in reports if r.ends_epoch] == [19, 38]
    assert reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"]


def test_a_logged_step_names_every_metric(digits: ShardSet) -> None:
    (report,) = take(started(tiny(), digits), 1)
    assert set(report.metrics) >= {
        "train/loss", "train/lr", "train/weight_decay", "train/ema", "train/grad_norm",
        "train/samples_per_s", "mask/context_tokens", "mask/effective_ratio", "stop/a_norm",
        "stop/noise_to_signal", "collapse/feature_std",
    }  # fmt: skip
    assert 0 < report.metrics["mask/effective_ratio"] < 1


@pytest.mark.parametrize("steps_before", [1, 7, 19, 25])
@pytest.mark.invariant(21)
def test_resume_is_bit_for_bit_also_in_mid_epoch(
    digits: ShardSet, tmp_path: Path, steps_before: int
) -> None:
    undisturbed = started(tiny(), digits)
    whole = take(undisturbed, 30)

    first = started(tiny(), digits)
    before = take(first, steps_before)
    saved = checkpoint.save(
        tmp_path, step=first.step, tensors=first.state(), identity={"run": "x"}, keep=1
    )
    second = started(tiny(), digits)
    second.load(*checkpoint.load(saved, identity={"run": "x"}))
    after = take(second, 30 - steps_before)

    assert [r.metrics["train/loss"] for r in before + after] == [
        r.metrics["train/loss"] for r in whole
    ]
    assert_same_state(second.state(), undisturbed.state())


def test_the_arms_of_a_block_are_fed_the_same(digits: ShardSet) -> None:
    arms = [
        started(tiny(), digits),
        started(tiny(positions__noise_std=1.0), digits),
        started(tiny(positions__kind="deterministic"), digits),
    ]
    for run in arms:
        take(run, 5)
    certificates = [run.record.certificate() for run in arms]
    assert certificates[0] == certificates[1] == certificates[2]
    assert set(certificates[0]) == {
        "init", "init/shared", "init/predictor.mask_token", "samples", "crops", "masks",
    }  # fmt: skip


def test_a_checkpoint_of_an_earlier_release_keeps_its_record(digits: ShardSet) -> None:
    """It held one hash of the first weights, and no parts."""
    run = started(tiny(), digits)
    take(run, 2)
    run.record.load({"init": "x", "digests": {"samples": [], "crops": [], "masks": []}})
    assert run.record.certificate()["init"] == "x"
    assert "init/shared" not in run.record.certificate()


@pytest.mark.parametrize(
    ("change", "stream"),
    [
        ({"seed": 1}, "init"),
        ({"seed": 1}, "samples"),
        ({"data__crop_scale": [0.5, 1.0]}, "crops"),
        ({"masking__target__scale": [0.2, 0.3]}, "masks"),
    ],
)
def test_another_input_shows_in_the_certificate(
    digits: ShardSet, change: dict[str, object], stream: str
) -> None:
    certificates = []
    for spec in (tiny(), tiny(**change)):
        run = started(spec, digits)
        take(run, 3)
        certificates.append(run.record.certificate())
    assert certificates[0][stream] != certificates[1][stream]


@pytest.mark.invariant(1)
def test_noise_zero_is_exactly_the_deterministic_run(digits: ShardSet) -> None:
    stop = started(tiny(positions__noise_std=0.0), digits)
    ijepa = started(tiny(positions__kind="deterministic"), digits)
    losses = [[r.metrics["train/loss"] for r in take(run, 10)] for run in (stop, ijepa)]
    assert losses[0] == losses[1]
    assert_same_state(stop.model.state_dict(), ijepa.model.state_dict())


@pytest.mark.invariant(19)
def test_the_target_follows_the_optimisers_step(digits: ShardSet) -> None:
    """It averages in the weights that the step has made, not those before it."""
    run = started(tiny(optim__ema=[0.9, 1.0]), digits)
    before = [value.clone() for value in run.target.parameters()]
    take(run, 1)
    momentum = run.schedules.momentum(1)
    assert momentum == 0.9
    after = run.model.encoder.parameters()
    for old, own, new in zip(before, run.target.parameters(), after, strict=True):
        expected = momentum * old.double() + (1 - momentum) * new.double()
        assert (own.double() - expected).abs().max() < 1e-7
        assert not own.requires_grad
    assert any(not torch.equal(a, b) for a, b in zip(before, run.target.parameters(), strict=True))
    assert run.schedules.momentum(run.total_steps) < 1


@pytest.mark.invariant(25)
def test_a_bf16_run_stays_finite(digits: ShardSet) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        run = started(tiny(optim__epochs=6, compute__precision=precision), digits)
        losses[precision] = [r.metrics.get("train/loss", 0.0) for r in take(run, 100)]
    assert len(losses["bf16"]) == 100  # a loss that is no number would have ended the run
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_train_shows_every_step_to_every_hook(digits: ShardSet) -> None:
    seen: list[tuple[str, int]] = []
    run = started(tiny(optim__epochs=1), digits)
    train(
        run,
        [lambda r, report, name=name: seen.append((name, report.step)) for name in ("a", "b")],
    )
    assert seen == [(name, step) for step in range(1, 20) for name in ("a", "b")]


def test_a_steps_targets_are_free_when_it_is_reported(
    digits: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def watched(run: Run, batch: Batch) -> Done:
        done = train_step(run, batch)
        kept.extend(weakref.ref(part) for part in done.targets)
        return done

    monkeypatch.setattr(loop, "train_step", watched)
    for _ in islice(steps(started(tiny(compute__accumulate=2), digits)), 2):
        assert all(part() is None for part in kept)
    assert len(kept) == 4


def test_logs_every_nth_step_after_a_dense_start(digits: ShardSet) -> None:
    run = started(tiny(optim__epochs=4), digits)
    logged = [r.step for r in take(run, 76) if r.metrics]
    assert logged == [*range(1, 51), 60, 70, 76]
