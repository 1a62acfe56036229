from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoplab_platform import pulse as pulse_module
from stoplab_platform.admission import Resources
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.logs import JsonLines
from stoplab_platform.pulse import FAILED_PASSES, Pulse
from stoplab_platform.runner.base import Launch, Observed, RunnerState
from support_jobs import running_lab
from support_logs import logging_to
from support_store import wait_for


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pulse_module, "time", made)
    return made


class TestTrouble:
    def test_none_while_passes_end(self, clock: Clock) -> None:
        pulse = Pulse()
        for _ in range(5):
            clock.now += 9
            with pulse.passing():
                pass
            assert pulse.trouble(10) is None

    def test_no_pass_for_long(self, clock: Clock) -> None:
        pulse = Pulse()
        clock.now += 11
        assert pulse.trouble(10) == "its last good pass was 11 s ago"

    def test_one_that_does_not_end(self, clock: Clock) -> None:
        pulse = Pulse()
        with pulse.passing():
            clock.now += 12
            assert pulse.trouble(10) == "a pass has been going on for 12 s"
            with pulse.looking_at("j_7"):
                assert str(pulse.trouble(10)).endswith(", now at j_7")
            assert "j_7" not in str(pulse.trouble(10))
        assert pulse.trouble(10) is None

    def test_failures_in_a_row(self, clock: Clock) -> None:
        pulse = Pulse()
        for number in range(FAILED_PASSES):
            assert pulse.trouble(10) is None, number
            with pytest.raises(OSError, match="full"), pulse.passing():
                raise OSError("full")
        assert pulse.trouble(10) == f"its last {FAILED_PASSES} passes failed: full"
        with pulse.passing():
            pass
        assert pulse.trouble(10) is None
        assert (pulse.passes, pulse.failures) == (FAILED_PASSES + 1, FAILED_PASSES)

    def test_what_is_held_adds_up(self, clock: Clock) -> None:
        pulse = Pulse()
        pulse.hold(Resources(4, 1))
        clock.now += 10
        pulse.hold(Resources(2, 1))
        clock.now += 5
        pulse.hold(Resources())
        assert pulse.held == Resources(20, 10)
        assert pulse.reserved == Resources()


class Deadly:
    """A cluster on which every attempt ends at once, without a word."""

    tied_to_parent = False

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def start(self, launch: Launch) -> None:
        self._taken.add(launch.submission_id)

    def observe(self, submission_id: str) -> Observed:
        taken = submission_id in self._taken
        return Observed(RunnerState.FAILED if taken else RunnerState.ABSENT)

    def stop(self, submission_id: str) -> None:
        """Nothing lives."""

    def alive(self) -> bool:
        return True


def test_a_reconciler_tells_what_it_does(home: Path) -> None:
    with (
        logging_to(JsonLines, logger_name="stoplab.reconciler") as said,
        running_lab(home, (), runner=Deadly()) as lab,
    ):
        job = lab.submit(compute={"max_failures": 1, "cpus_per_worker": 2})
        lab.wait(job, State.FAILED)
        pulse = lab.reconciler.pulse
        wait_for(lambda: pulse.reserved == Resources(), "nothing held")
        recoveries = lab.store.recoveries(job.id)
    assert recoveries
    assert {ReasonCode(code): number for code, number in pulse.recoveries.items()} == recoveries
    assert pulse.attempts == 1 + sum(recoveries.values())
    assert pulse.held.cpus > 0
    assert pulse.held.gpus == 0
    assert (pulse.failures, pulse.lost_sight) == (0, 0)
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert {line["job_id"] for line in lines} == {job.id}, "each line names its job"
    assert {line["attempt"] for line in lines} >= {1, 2}
