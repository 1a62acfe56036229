"""Room for workers that others take: before they begin, and when a run would grow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from stoplab_platform.errors import Stopped
from stoplab_platform.files import write_json
from stoplab_trainers.launch import execute
from stoplab_trainers.room import Room
from support_runs import folder, identity, tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    yield
    ray.shutdown()


class Rival:
    """Another who takes one CPU as soon as the run leaves it, whenever it wants one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wants, self.took, self._has = True, 0, list[PlacementGroup]()
        give = Room.give

        def give_up(room: Room) -> None:
            give(room)
            self._take()

        monkeypatch.setattr(Room, "give", give_up)

    def leave(self) -> None:
        """Have none, and want the next one that the run has held."""
        remove_placement_group(self._has.pop())
        self.wants = True

    def _take(self) -> None:
        if self.wants:
            self._has.append(placement_group([{"CPU": 1}]))
            assert self._has[0].wait(60)
            self.wants, self.took = False, self.took + 1


def test_a_run_goes_on_with_less_where_others_take_its_room(
    tmp_path: Path, two_cpus: None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    run, stop, rival = folder(tmp_path), tmp_path / "stop.json", Rival(monkeypatch)
    steps: list[int] = []

    def go_on(progress: dict[str, object]) -> None:
        """Once it trains beside the rival, make room; once it was outrun again, end it."""
        steps.append(int(str(progress["step"])))
        told = caplog.text.count("goes on with 1 worker (of 2): others took the room")
        if told == rival.took == 1 and not rival.wants:
            rival.leave()
        elif told == 2:
            write_json(stop, {"intent": "PAUSED", "deadline_s": 60})

    spec = tiny(evals=[], compute__workers=2, compute__min_workers=1, optim__epochs=10_000)
    with caplog.at_level("INFO", "stoplab"), pytest.raises(Stopped):
        execute(spec, run, identity(), stop_file=stop, on_progress=go_on)
    assert rival.took == 2
    assert steps == sorted(steps), "a step was lost"
