"""How many workers a run may have, what stays the same then, and notice of the end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from stoplab_platform.errors import SpecError, Stopped
from stoplab_platform.files import read_lines
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import RunIdentity
from stoplab_trainers import checkpoint
from stoplab_trainers.launch import execute
from stoplab_trainers.loop import World
from stoplab_trainers.rank import run_rank
from stoplab_trainers.watchdog import Watchdog
from support_invariants import has_logged
from support_runs import folder, identity, tiny


def lone(tmp_path: Path, name: str) -> tuple[RunFolder, RunIdentity, World, Watchdog]:
    """A rank that is alone, though its spec may plan for others."""
    run = folder(tmp_path, name)
    return run, identity(), World(), Watchdog(run, World())


class TestCounts:
    @pytest.mark.parametrize(
        ("batch", "fewest", "most", "counts"),
        [
            (12, 2, 4, (2, 3, 4)),
            (16, 2, 4, (2, 4)),
            (2048, 1, 32, (1, 2, 4, 8, 16, 32)),
            (64, None, 4, (4,)),
        ],
    )
    def test_they_divide_the_batch(
        self, batch: int, fewest: int | None, most: int, counts: tuple[int, ...]
    ) -> None:
        spec = tiny(optim__batch_size=batch, compute__workers=most, compute__min_workers=fewest)
        assert spec.compute.counts(batch) == counts

    def test_no_part_is_larger_than_was_planned(self) -> None:
        compute = tiny(
            optim__batch_size=24, compute__workers=4, compute__min_workers=1, compute__accumulate=2
        ).compute
        planned = 24 // 4 // 2
        for count in compute.counts(24):
            own, parts = 24 // count, compute.parts(24, count)
            assert own % parts == 0
            assert own // parts <= planned
        assert compute.parts(24, 4) == 2

    def test_the_identity_of_the_weights_stays(self) -> None:
        fixed = tiny(optim__batch_size=12, compute__workers=4)
        free = tiny(optim__batch_size=12, compute__workers=4, compute__min_workers=2)
        assert fixed.run_digest({}) == free.run_digest({})

    def test_a_run_of_one_worker_in_parts_learns_the_same(self, tmp_path: Path) -> None:
        plain = tiny(evals=[], optim__epochs=1, optim__batch_size=128)
        free = tiny(
            evals=[], optim__epochs=1, optim__batch_size=128,
            compute__workers=4, compute__min_workers=1,
        )  # fmt: skip
        one = run_rank(plain, *lone(tmp_path, "one"))
        parts = run_rank(free, *lone(tmp_path, "parts"))
        assert one is not None
        assert parts is not None
        assert parts.metrics["train/loss"] == pytest.approx(one.metrics["train/loss"], rel=1e-4)
        assert parts.metrics["train/lr"] == one.metrics["train/lr"]
        assert parts.metrics["train/ema"] == one.metrics["train/ema"]
        alike = ("init", "samples", "masks")
        assert [one.certificate[s] for s in alike] == [parts.certificate[s] for s in alike]


class TestRefused:
    @pytest.mark.parametrize(
        ("fewest", "most", "batch", "told"),
        [
            (3, 4, 16, r"min_workers: 3: .*workers \(4\) divides optim.batch_size \(16\); give 2,"),
            (8, 4, 16, r"min_workers: 8: .*give 2, or null"),
            (1, 1, 16, r"min_workers: 1: .*give null"),
        ],
    )
    def test_a_number_that_leaves_no_choice(
        self, fewest: int, most: int, batch: int, told: str
    ) -> None:
        with pytest.raises(SpecError, match=told):
            tiny(optim__batch_size=batch, compute__workers=most, compute__min_workers=fewest)

    def test_masks_that_depend_on_the_number_of_workers(self) -> None:
        with pytest.raises(SpecError, match="min_workers: 2: masks of the official sampler"):
            tiny(
                optim__batch_size=12, compute__workers=4, compute__min_workers=2,
                masking__sampler="official",
            )  # fmt: skip


def test_a_terminated_run_saves_the_step_it_is_in(tmp_path: Path) -> None:
    run = folder(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def terminate(progress: dict[str, object]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        execute(tiny(evals=[]), run, identity(), on_progress=terminate)
    assert stopped.value.intent == "PREEMPTED"
    newest = checkpoint.latest(run.checkpoints)
    assert newest is not None
    saved = checkpoint.load(newest, identity=None)[0]
    assert saved == stopped.value.step == has_logged(run) < 38
    verbs = [line["verb"] for line in read_lines(run.spool)]
    assert "finish" not in verbs, "the tracker was told of an end"
    assert signal.getsignal(signal.SIGTERM) is before
    assert execute(tiny(evals=[]), run, identity()).steps == 38
