"""Why attempts fail: what exit codes and last words are taken for, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.failures import (
    FAILURES,
    LASTING,
    TABLE,
    back_off_s,
    budget,
    cause,
    cause_in,
    explained,
)
from stoplab_platform.jobs.states import ReasonCode

RAY_ACTOR = (
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
    "\tclass_name: RayTrainWorker\n"
)
RAY_CAUSES = (
    "Some common causes include: (1) the process was killed by the OOM killer due to high memory "
    "usage, (2) ray stop --force was called"
)
PAGE = Path(__file__).parents[2] / "docs" / "jobs.md"


class TestCause:
    @pytest.mark.parametrize(
        ("words", "code"),
        [
            ("KeyError: 'lr'", "RUN_ERROR"),
            ("stoplab_trainers.loop.Diverged: the loss is nan at step 7", "DIVERGED"),
            ("workers.TrainingFailed: DataMissing: '/x/*.tar' matches no shard", "DATA_MISSING"),
            ("stoplab_platform.errors.DataAway: s3://b/a.tar: 503 Slow Down", "DATA_AWAY"),
            ("OSError: [Errno 28] No space left on device: 'state.pt'", "DISK_FULL"),
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "GPU_OOM"),
            ("MemoryError: Unable to allocate 8 GiB", "OOM"),
            ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", "OOM"),
            ("2 worker(s) were killed due to the node running low on memory. ", "OOM"),
            (RAY_ACTOR + "the actor's node was preempted: spot", "PREEMPTED"),
            (RAY_ACTOR + "The actor died because its node has died. Node Id: 9", "NODE_LOST"),
            (RAY_ACTOR + RAY_CAUSES, "WORKER_ERROR"),
        ],
    )
    def test_last_words(self, words: str, code: str) -> None:
        log = f"12:00 step 5 of 9  loss 0.5\nTraceback (most recent call last):\n{words}\n"
        assert cause(Exit.FAILED, log) is ReasonCode(code)

    @pytest.mark.parametrize(
        ("exit_code", "code"),
        [(2, "BAD_INPUT"), (66, "DATA_MISSING"), (1, "RUN_ERROR"), (-9, "WORKER_ERROR"),
         (137, "WORKER_ERROR"), (-11, "WORKER_ERROR")],
    )  # fmt: skip
    def test_exit_codes(self, exit_code: int, code: str) -> None:
        assert cause(exit_code, "what nobody knows") is ReasonCode(code)

    def test_the_kernels_count_explains_a_kill_and_nothing_else(self) -> None:
        assert cause(-9, oom=True) is ReasonCode.OOM
        assert cause(1, RAY_ACTOR, oom=True) is ReasonCode.OOM
        assert cause(1, "KeyError: 'lr'", oom=True) is ReasonCode.RUN_ERROR

    def test_words_that_say_nothing(self) -> None:
        assert cause_in("it ended") is None


class TestSentence:
    def test_a_cure_and_what_was_said(self) -> None:
        told = str(explained(ReasonCode.DISK_FULL, "OSError: [Errno 28]"))
        assert "checkpoint.keep" in told
        assert told.endswith("(OSError: [Errno 28])")

    def test_errors_of_the_run_speak_for_themselves(self) -> None:
        assert explained(ReasonCode.RUN_ERROR, "KeyError: 'lr'") == "KeyError: 'lr'"


class TestAgain:
    def test_a_bug_is_not_tried_again(self) -> None:
        kinds = {"BAD_INPUT", "COLLAPSED", "DATA_MISSING", "DIVERGED", "RUN_ERROR"}
        assert kinds == LASTING
        assert all(budget(code, 3) == 0 for code in LASTING)

    def test_waits_grow_to_a_cap_and_are_the_same_each_time(self) -> None:
        for failure in TABLE:
            waits = [back_off_s(failure.code, n) for n in range(1, 2000)]
            assert waits[0] == failure.first_s
            assert waits == sorted(waits)
            assert waits[-1] == failure.cap_s
            assert waits == [back_off_s(failure.code, n) for n in range(1, 2000)]

    def test_no_restarts_means_none(self) -> None:
        assert all(budget(code, 0) == 0 for code in FAILURES)

    def test_the_page_tells_of_every_reason(self) -> None:
        page = PAGE.read_text()
        assert [code for code in ReasonCode if f"| `{code}` |" not in page] == []
