"""One contract, kept by a folder and by a real S3 server: a checkpoint is whole or not there."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from stoplab_platform.errors import CheckpointError, DataAway, DataError
from stoplab_platform.remote import Remote
from stoplab_trainers import checkpoint
from stoplab_trainers.data.cache import locked
from stoplab_trainers.stores.objects import Objects
from support_faults import Faults
from support_s3 import BUCKET
from support_stores import Bucket, Folder, Kept, States, failing, options

MINE = {"run": "abc"}


@pytest.fixture
def proxy(s3: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with failing(s3, monkeypatch) as server:
        yield server


@pytest.fixture
def box(s3: int, proxy: Faults, tmp_path: Path) -> Bucket:
    return Bucket(s3, proxy, tmp_path / "cache")


@pytest.fixture(params=["folder", "bucket"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    found: Kept = (
        request.getfixturevalue("box")
        if request.param == "bucket"
        else Folder(tmp_path / "deep" / "folder")
    )
    return found


@pytest.fixture
def states(kept: Kept) -> States:
    return States([kept.store])


def steps(kept: Kept) -> list[int]:
    return sorted(int(name[5:]) for name in kept.store.names())


def state_of(kept: Kept, step: int) -> str:
    name = f"step-{step:08d}/state"
    return next(file for file in kept.files() if file.startswith(name))


def spoil(kept: Kept, step: int) -> None:
    file = state_of(kept, step)
    data = bytearray(kept.read(file))
    data[len(data) // 2] ^= 1
    kept.put(file, bytes(data))


def left_in(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


class TestContract:
    def test_what_is_saved_is_loaded(self, kept: Kept, states: States, tmp_path: Path) -> None:
        saved = states.save(120, record={"init": "x"})
        assert saved.name == "step-00000120"
        assert str(saved).endswith("/step-00000120")
        step, found = checkpoint.load(saved, identity=MINE)
        assert (step, found["record"]) == (120, {"init": "x"})
        assert torch.equal(found["model"]["w"], torch.full((1000,), 120.0))
        told = checkpoint.manifest(saved)
        assert (told["step"], told["identity"]) == (120, MINE)
        assert told["size"] == len(kept.read(state_of(kept, 120)))
        step, weights = checkpoint.load_weights(saved)
        assert weights.keys() == {"model", "target"}
        assert left_in(tmp_path / "cache") == [], "the copy that was read is gone, not what it held"
        assert torch.equal(weights["target"]["w"], torch.full((1000,), 120.0))

    def test_latest_is_the_newest_whole_one(
        self, kept: Kept, states: States, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert checkpoint.latest([kept.store]) is None
        for step in (9, 100, 20):
            states.save(step)
        spoil(kept, 100)
        with caplog.at_level(logging.WARNING):
            found = checkpoint.latest([kept.store])
        assert found is not None
        assert found.step == 20
        assert "does not match its checksum" in caplog.text
        assert "step-00000100/state" in caplog.text

    @pytest.mark.parametrize("harm", ["flipped", "cut", "no state", "not JSON", "empty"])
    def test_any_harm_is_noticed(self, harm: str, kept: Kept, states: States) -> None:
        saved = states.save(5)
        manifest = "step-00000005/manifest.json"
        match harm:
            case "flipped":
                spoil(kept, 5)
            case "cut":
                kept.put(state_of(kept, 5), kept.read(state_of(kept, 5))[:100])
            case "no state":
                kept.drop(state_of(kept, 5))
            case "not JSON":
                kept.put(manifest, b"{")
            case "empty":
                kept.put(manifest, b"{}")
        with pytest.raises(CheckpointError, match=r"step-00000005"):
            checkpoint.load(saved, identity=MINE)
        with pytest.raises(CheckpointError, match=r"every checkpoint in .* is broken"):
            checkpoint.latest([kept.store])
        states.save(5)
        assert checkpoint.load(saved, identity=MINE)[0] == 5, "saved again, in its place"

    def test_another_runs_checkpoint_is_refused_by_name(self, states: States) -> None:
        with pytest.raises(CheckpointError, match=r"belongs to run abc, this run is run xyz"):
            checkpoint.load(states.save(5), identity={"run": "xyz"})

    def test_only_the_newest_are_kept(self, kept: Kept, states: States) -> None:
        for step in (10, 20, 30):
            states.save(step, keep=2)
        assert steps(kept) == [20, 30]
        spoil(kept, 30)
        states.save(25, keep=1)
        assert steps(kept) == [25], "the broken later one goes, not the new one"
        assert {file.partition("/")[0] for file in kept.files()} == {"step-00000025"}

    def test_a_step_saved_again_is_left_alone_if_whole(self, kept: Kept, states: States) -> None:
        states.save(5)
        before = kept.files()
        states.save(5, record="other")
        assert kept.files() == before
        assert "record" not in checkpoint.load(states.save(5), identity=MINE)[1]

    def test_of_several_places_the_newest_of_all_counts(self, kept: Kept, tmp_path: Path) -> None:
        other = Folder(tmp_path / "other")
        States([other.store]).save(7)
        States([kept.store]).save(5)
        found = checkpoint.latest([kept.store, other.store])
        assert str(found) == str(tmp_path / "other" / "step-00000007")
        States([kept.store, other.store]).save(9, keep=1)
        assert (steps(kept), steps(other)) == ([9], [7]), "only the first is written to"

    def test_who_reads_a_run_that_goes_on_finds_its_newest(
        self, kept: Kept, states: States
    ) -> None:
        """The one that was newest at first is gone once it is opened."""
        states.save(1)

        def read(saved: checkpoint.Saved) -> int:
            if saved.step == 1:
                states.save(2, keep=1)
            return checkpoint.load(saved, identity=MINE)[0]

        assert checkpoint.newest([kept.store], read) == 2

    def test_what_is_being_read_may_be_removed(self, kept: Kept, states: States) -> None:
        saved = states.save(1)
        with kept.store.state(saved.name, checkpoint.manifest(saved)) as path:
            states.save(2, keep=1)
            assert steps(kept) == [2]
            assert torch.load(path)["model"]["w"][0] == 1

    @pytest.mark.parametrize("error", [OSError("busy"), DataAway("away"), DataError("not yours")])
    def test_an_old_one_that_cannot_be_removed_costs_no_new_one(
        self,
        kept: Kept,
        states: States,
        error: Exception,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def failing(name: str) -> None:
            raise error

        states.save(1)
        with monkeypatch.context() as patch:
            patch.setattr(kept.store, "remove", failing)
            states.save(2, keep=1)
        assert f"step-00000001 stays for now: {error}" in caplog.text
        assert steps(kept) == [1, 2]
        states.save(3, keep=1)
        assert steps(kept) == [3], "it is tried again"

    def test_a_format_of_another_version_is_told(self, kept: Kept, states: States) -> None:
        saved = states.save(1)
        manifest = "step-00000001/manifest.json"
        kept.put(manifest, kept.read(manifest).replace(b'"format": 1', b'"format": 2'))
        with pytest.raises(CheckpointError, match="has format 2; this version of stoplab reads 1"):
            checkpoint.load(saved, identity=MINE)

    def test_a_place_is_tried_before_anything_is_spent(self, kept: Kept) -> None:
        kept.store.probe()
        assert kept.files() == []


class TestObjects:
    def test_a_state_without_a_manifest_does_not_exist(
        self, box: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where the writer was killed between the two."""
        states = States([box.store])
        states.save(1)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Remote, "write", killed)
            with pytest.raises(KeyboardInterrupt):
                states.save(2)
        assert len(box.files()) == 3
        assert steps(box) == [1]
        states.save(3)
        assert {file.partition("/")[0] for file in box.files()} == {
            "step-00000001",
            "step-00000003",
        }

    def test_two_writers_of_a_step_do_not_mix_their_states(self, box: Bucket) -> None:
        """One that was replaced may still write; what it leaves goes with the next save."""
        states = States([box.store])
        saved = states.save(4)
        box.put("step-00000004/state-0123456789abcdef.pt", b"of the other")
        assert checkpoint.load(saved, identity=MINE)[0] == 4
        states.save(5)
        assert len(box.files()) == 4

    def test_a_save_lists_the_place_once_and_once_more_for_what_it_removes(
        self, box: Bucket, proxy: Faults
    ) -> None:
        states = States([box.store])
        for step, listings in ((1, 1), (2, 1), (3, 2), (4, 2)):
            proxy.asked.clear()
            states.save(step, keep=2)
            assert sum("delimiter=&" in path for path in proxy.asked) == listings
        assert steps(box) == [3, 4]

    def test_several_read_at_once(self, box: Bucket, proxy: Faults, tmp_path: Path) -> None:
        """As the ranks of two machines do: each machine has a cache of its own."""
        saved, found = States([box.store]).save(6), list[int]()
        places = [
            Objects(f"s3://{box.prefix}", options(proxy), tmp_path / machine)
            for machine in ("one", "two")
            for _ in range(3)
        ]

        def read(store: Objects) -> None:
            step, state = checkpoint.load(checkpoint.Saved(store, saved.name), identity=MINE)
            found.append(step * int(state["model"]["w"][0]))

        threads = [threading.Thread(target=read, args=(place,)) for place in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == [36] * 6
        assert left_in(tmp_path / "one") == left_in(tmp_path / "two") == []

    def test_a_copy_goes_only_while_nobody_is_about_to_open_it(
        self, box: Bucket, tmp_path: Path
    ) -> None:
        saved = States([box.store]).save(6)
        with ExitStack() as reading:
            reading.enter_context(box.store.state(saved.name, checkpoint.manifest(saved)))
            (copy,) = left_in(tmp_path / "cache")
            leaving = threading.Thread(target=reading.close)
            with locked(copy.with_name(copy.name.partition("-")[0])):
                leaving.start()
                leaving.join(0.2)
                assert copy.exists(), "the other one has seen it, and opens it now"
            leaving.join(60)
        assert not copy.exists()

    def test_a_bucket_that_is_not_there_is_told_at_once(
        self, proxy: Faults, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=r"s3://nowhere/x/probe"):
            Objects("s3://nowhere/x", options(proxy), tmp_path).probe()

    def test_a_place_that_lists_nothing_is_told_before_anything_is_spent(
        self, proxy: Faults, tmp_path: Path
    ) -> None:
        """A run would find none of its checkpoints there, and begin anew each time."""
        with pytest.raises(DataError, match=r"was written, and is not there"):
            Objects(f"s3://{BUCKET}//x", options(proxy), tmp_path).probe()


class TestFaults:
    @pytest.mark.parametrize("fault", [500, 503, 429, "silence", "cut", "slow"])
    def test_what_may_pass_is_tried_again(
        self, box: Bucket, proxy: Faults, fault: int | str, tmp_path: Path
    ) -> None:
        states = States([box.store])
        again = [fault] if fault == "slow" else [fault, fault, "pass"]
        proxy.write_faults.extend([*again, fault])  # state, manifest
        saved = states.save(3)
        assert not proxy.write_faults, "they happened"
        assert len(box.files()) == 2
        proxy.faults.extend([*again, fault] if fault == "slow" else [fault, "pass", fault])
        assert checkpoint.load(saved, identity=MINE)[0] == 3
        assert not proxy.faults
        assert left_in(tmp_path / "cache") == []

    def test_all_of_them_at_once(self, box: Bucket, proxy: Faults) -> None:
        states = States([box.store])
        proxy.write_faults.extend([500, "cut", "slow", 503, "silence", "pass", "cut", 500] * 2)
        proxy.faults.extend([500, "cut", "slow", "silence"])
        for step in (1, 2, 3, 4, 5):
            states.save(step, keep=2)
        assert not proxy.write_faults
        assert steps(box) == [4, 5]
        found = checkpoint.newest([box.store], lambda one: checkpoint.load(one, identity=MINE)[0])
        assert found == 5
        assert not proxy.faults

    def test_a_store_that_does_not_answer_is_away_and_keeps_what_it_has(
        self, box: Bucket, proxy: Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stoplab_platform.remote.TRIES", 2)
        states = States([box.store])
        states.save(1)
        proxy.write_faults.extend([503] * 20)
        with pytest.raises(DataAway, match=r"step-00000002/state-\w+\.pt: .*2 times"):
            states.save(2)
        proxy.write_faults.clear()
        assert steps(box) == [1]
        proxy.faults.extend([503] * 20)
        with pytest.raises(DataAway):
            checkpoint.latest([box.store])
        proxy.faults.clear()
        found = checkpoint.latest([box.store])
        assert found is not None
        assert found.step == 1

    def test_no_secret_is_left_where_others_read(
        self, box: Bucket, proxy: Faults, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxy.write_faults.extend([500, "cut"])
        with caplog.at_level(logging.DEBUG, "stoplab"):
            states = States([box.store])
            saved = states.save(1)
        assert "again in" in caplog.text
        for text in (caplog.text, json.dumps(checkpoint.manifest(saved)), str(saved)):
            assert "password" not in text
